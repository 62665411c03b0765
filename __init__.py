"""DeepGen 1.0 for ComfyUI: text-to-image and image editing on Ascend NPU, CUDA and CPU.

ComfyUI calls `comfy_entrypoint` once. Nothing heavy is imported here or by the node files, so the pack does
not slow ComfyUI's start.
"""

# Help pages of the nodes (web/docs), no JavaScript.
WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The pack as an extension of ComfyUI."""
    from .nodes.extension import DeepGenExtension
    from .nodes.model_folder import register_model_folder

    # Not in on_load, which ComfyUI 0.3.64 does not call: the loader's list needs the folder.
    register_model_folder()
    return DeepGenExtension()
