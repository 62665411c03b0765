"""What proves the Ascend adaptation without a card: a simulated NPU, and the real torch_npu on host memory."""
