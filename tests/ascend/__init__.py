"""What the tests need to prove the Ascend adaptation without a card."""
