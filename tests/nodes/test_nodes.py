"""The nodes in a real ComfyUI, over its HTTP and websocket interface."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from golden import TINY
from golden_graphs import golden_run
from PIL import Image
from progress_checks import assert_cancelled_within_a_step

from deepgen_npu.checkpoint.folder import Checkpoint
from dev.comfyui.graphs import array, chain, edit, generation, load_image, loader, save


ROOT = Path(__file__).parents[2]
NODES = (
    "DeepGenLoader",
    "DeepGenTextToImage",
    "DeepGenEdit",
    "DeepGenEncode",
    "DeepGenSample",
    "DeepGenLoRA",
    "DeepGenCropRegion",
    "DeepGenPutBack",
    "DeepGenGuidanceEvery",
)


def messages(errors: dict) -> str:
    """All that the server says of a refused prompt."""
    return json.dumps(errors, ensure_ascii=False)


class TestSchema:
    def test_saved_workflows_keep_working(self, comfy_client):
        """Ids, their order and their types are in users' files: entries may be added at the end, never changed."""
        expected = json.loads((Path(__file__).parent / "interface.json").read_text(encoding="utf-8"))
        assert set(expected) == set(NODES)
        for node, interface in expected.items():
            info = comfy_client.object_info(node)[node]
            for kind, names in interface["inputs"].items():
                given = info["input_order"].get(kind, [])
                assert given[: len(names)] == list(names), (node, kind)
                types = {name: info["input"][kind][name][0] for name in names}
                assert {n: "COMBO" if isinstance(t, list) else t for n, t in types.items()} == names, node
            assert info["output"][: len(interface["outputs"])] == interface["outputs"]

    @pytest.mark.parametrize("node", NODES)
    def test_everything_is_explained(self, comfy_client, node):
        info = comfy_client.object_info(node)[node]
        assert info["display_name"].startswith("DeepGen") and info["description"] and info["category"] == "DeepGen"
        for inputs in info["input"].values():
            for name, (kind, options) in inputs.items():
                assert len(options["tooltip"]) > 20, name
                if kind in ("INT", "FLOAT"):
                    assert options["min"] <= options["default"] <= options["max"], name
        assert all(info["output_tooltips"])

    def test_widgets(self, comfy_client):
        for node, multiple in (("DeepGenTextToImage", 16), ("DeepGenEdit", 32)):
            inputs = comfy_client.object_info(node)[node]["input"]["required"]
            for side in ("width", "height"):
                options = inputs[side][1]
                assert (options["step"], options["min"], options["default"]) == (multiple, multiple, 512)
                assert options["max"] % multiple == 0
            assert inputs["seed"][1]["control_after_generate"] is True
            assert inputs["seed"][1]["max"] == 2**64 - 1
            assert (inputs["steps"][1]["default"], inputs["cfg"][1]["default"]) == (50, 4.0)
            assert inputs["prompt"][1]["multiline"] and inputs["negative_prompt"][1]["multiline"]

    def test_the_published_model_is_offered_first(self, comfy_client):
        options = comfy_client.object_info("DeepGenLoader")["DeepGenLoader"]["input"]["required"]["model"]
        names = options[1]["options"] if options[0] == "COMBO" else options[0]
        assert names[0] == "DeepGen-1.0-diffusers"
        assert {"somebody/reference", "broken"} <= set(names)
        assert not any("elsewhere" in name or "from_extra_path" in name for name in names)


class TestRuns:
    @pytest.mark.parametrize("case", ["t2i", "edit"])
    def test_images_are_the_originals(self, comfy, comfy_client, case):
        """Loader, node and SaveImage together agree with the golden image to the last of 256 levels."""
        graph, expected = golden_run(case, comfy.input)
        result = comfy_client.run(graph)
        assert result.ok, result.error_text
        (image,) = result.images
        assert np.abs(array(image) - array(expected)).max() <= 1

    def test_generate_then_edit_and_reuse(self, comfy_client):
        first = comfy_client.run(chain(seed=1))
        assert first.ok, first.error_text
        (generated,), (edited,) = first.images_of("generated"), first.images_of("edited")
        assert generated.size == edited.size == (64, 64)
        assert np.abs(array(generated) - array(edited)).mean() > 1

        again = comfy_client.run(chain(seed=1))
        assert again.ok and again.executed == [], "the same seed computes nothing"

        changed = comfy_client.run(chain(seed=1, prompt="make it green"))
        assert changed.ok
        assert set(changed.executed) == {"edit", "edited"}, "a changed edit does not generate again"
        assert np.abs(array(changed.images_of("edited")[0]) - array(edited)).max() > 0

    def test_the_edit_receives_the_generated_image(self, comfy, comfy_client):
        graph = chain(seed=5)
        first = comfy_client.run(graph)
        first.images_of("generated")[0].save(comfy.input / "generated.png")
        graph["generate"] = load_image("generated.png")
        second = comfy_client.run(graph)
        assert second.ok, second.error_text
        assert np.array_equal(array(second.images_of("edited")[0]), array(first.images_of("edited")[0]))

    def test_the_same_seed_after_everything_was_unloaded(self, comfy, comfy_client):
        graph = {"loader": loader(), "generate": generation(seed=77), "generated": save("generate")}
        first = comfy_client.run(graph)
        comfy.free()
        second = comfy_client.run(graph)
        assert set(second.executed) == {"loader", "generate", "generated"}
        assert np.array_equal(array(first.images[0]), array(second.images[0]))

    def test_batches(self, comfy_client):
        graph = chain()
        graph["generate"] = generation(batch_size=3)
        result = comfy_client.run(graph)
        assert result.ok, result.error_text
        generated, edited = result.images_of("generated"), result.images_of("edited")
        assert len(generated) == len(edited) == 3
        for images in (generated, edited):
            assert np.abs(array(images[0]) - array(images[1])).max() > 0
        single = comfy_client.run(chain())
        # Other batch sizes take other kernels: equal up to rounding, not to the bit.
        assert np.abs(array(single.images_of("generated")[0]) - array(generated[0])).max() <= 1
        assert len({progress.max for progress in result.progress if progress.node == "edit"}) == 1
        assert max(progress.value for progress in result.progress if progress.node == "edit") == 9

    def test_references(self, comfy, comfy_client):
        Image.open(ROOT / "assets" / "coffee.jpg").save(comfy.input / "coffee.jpg")
        graph = {"loader": loader(), "a": load_image("example.png"), "b": load_image("coffee.jpg")}
        images = []
        for extra in ({}, {"image_2": ["b", 0]}, {"image_2": ["b", 0], "image_4": ["a", 0]}):
            result = comfy_client.run({**graph, "edit": edit("a", **extra), "saved": save("edit")})
            assert result.ok, result.error_text
            images.append(array(result.images[0]))
        assert np.abs(images[0] - images[1]).max() > 1 and np.abs(images[1] - images[2]).max() > 1

    def test_following_the_image(self, comfy, comfy_client):
        Image.open(ROOT / "assets" / "coffee.jpg").save(comfy.input / "coffee.jpg")
        graph = {
            "loader": loader("DeepGen-1.0-diffusers"),
            "image": load_image("coffee.jpg"),
            "edit": edit("image", size_mode="follow image", width=33, height=7, steps=1),
            "saved": save("edit"),
        }
        result = comfy_client.run(graph)
        assert result.ok, result.error_text
        assert result.images[0].size == (640, 448)  # of 600 x 400

    def test_the_workflow_is_in_the_image(self, comfy_client):
        graph = {"loader": loader(), "generate": generation(), "generated": save("generate")}
        result = comfy_client.run(graph, extra_data={"extra_pnginfo": {"workflow": {"marker": 1}}})
        stored = json.loads(result.files[0].text["prompt"])
        assert {key: {**node, "is_changed": None} for key, node in graph.items()} == {
            key: {**node, "is_changed": None} for key, node in stored.items()
        }
        assert json.loads(result.files[0].text["workflow"]) == {"marker": 1}

    def test_weights_of_every_dtype(self, comfy_client):
        for dtype in ("auto", "bfloat16", "float16"):
            graph = {"loader": loader(dtype=dtype), "generate": generation(), "generated": save("generate")}
            result = comfy_client.run(graph)
            assert result.ok, result.error_text
            assert array(result.images[0]).std() > 1


class TestProgress:
    def test_bar_and_preview(self, comfy_client):
        graph = {"loader": loader(), "generate": generation(steps=6, seed=9), "generated": save("generate")}
        result = comfy_client.run(graph)
        steps = [(p.value, p.max) for p in result.progress if p.node == "generate"]
        assert steps[-6:] == [(step, 6) for step in range(1, 7)]
        # Before the steps there may be the bytes of the weights that the loader has not read.
        assert {most for _, most in steps[:-6]} <= {Checkpoint.open(TINY).nbytes("vlm", "connector", "vae")}
        previews = [preview.image for preview in result.previews if preview.node == "generate"]
        assert len(previews) >= 1
        assert all(array(preview).std() > 1 for preview in previews)

    def test_cancel_stops_within_one_step_and_the_next_run_is_unharmed(self, comfy_client):
        slow = generation(steps=1000, seed=3, width=768, height=768)
        graph = {"loader": loader("DeepGen-1.0-diffusers"), "generate": slow, "generated": save("generate")}
        assert_cancelled_within_a_step(comfy_client, graph, "generate")
        graph["generate"]["inputs"]["steps"] = 2
        after = comfy_client.run(graph)
        assert after.ok, after.error_text
        assert "loader" in after.cached


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"width": 100}, ["width must be a multiple of 16 from 16 to 6144, got 100 (nearest: 96, 112)."]),
            ({"height": 8}, ["height must be a multiple of 16 from 16 to 6144, got 8 (nearest: 16)."]),
            ({"steps": 0}, ["Value 0 smaller than min of 1", "steps"]),
            ({"batch_size": 0}, ["Value 0 smaller than min of 1", "batch_size"]),
            ({"cfg": -1.0}, ["smaller than min", "cfg"]),
            ({"seed": -5}, ["smaller than min", "seed"]),
        ],
    )
    def test_settings_are_checked_before_the_queue(self, comfy_client, changes, words):
        graph = {"loader": loader(), "make": generation(**changes), "saved": save("make")}
        errors = comfy_client.validate(graph)
        assert errors is not None
        for word in words:
            assert word in messages(errors)

    def test_edit_sizes_are_checked_where_they_count(self, comfy_client):
        graph = {"loader": loader(), "a": load_image("example.png"), "saved": save("make")}
        errors = comfy_client.validate({**graph, "make": edit("a", height=48)})
        assert errors is not None
        assert "height must be a multiple of 32 from 32 to 6144, got 48 (nearest: 32, 64)." in messages(errors)
        errors = comfy_client.validate({**graph, "make": edit("a", size_mode="as it comes")})
        assert errors is not None and "size_mode" in messages(errors)

    @pytest.mark.parametrize(
        "model",
        [
            "../../elsewhere",
            "../elsewhere",
            "somebody/../../../elsewhere",
            "/etc",
            "",
            ".",
            "somebody",
            "C:\\models",
        ],
    )
    def test_no_path_outside_the_model_folders(self, comfy, comfy_client, model):
        assert (comfy.base / "elsewhere" / "model_index.json").is_file()
        graph = {"loader": loader(model), "make": generation(), "saved": save("make")}
        errors = comfy_client.validate(graph)
        assert errors is not None and "model must be a model in /" in messages(errors)

    def test_an_absolute_path_is_no_name(self, comfy, comfy_client):
        graph = {"loader": loader(str(comfy.base / "elsewhere")), "make": generation(), "saved": save("make")}
        errors = comfy_client.validate(graph)
        assert errors is not None and "model must be a model in /" in messages(errors)

    def test_a_dtype_that_does_not_exist(self, comfy_client):
        errors = comfy_client.validate({"loader": loader(dtype="int4"), "make": generation(), "saved": save("make")})
        assert "dtype must be one of 'auto', 'bfloat16', 'float16', 'float32', got 'int4'." in messages(errors or {})

    def test_a_broken_checkpoint_is_named(self, comfy_client):
        result = comfy_client.run({"loader": loader("broken"), "make": generation(), "saved": save("make")})
        assert not result.ok
        assert result.error is not None and result.error["node_type"] == "DeepGenLoader"
        assert "vae/diffusion_pytorch_model.safetensors is missing" in result.error_text
        assert "python -m deepgen_npu download" in result.error_text

    def test_a_size_that_this_checkpoint_cannot_make(self, comfy_client):
        graph = {"loader": loader(), "make": generation(width=512), "saved": save("make")}
        result = comfy_client.run(graph)
        assert "width must be a multiple of 16 from 16 to 384, got 512 (nearest: 384)." in result.error_text


class TestSearch:
    def test_search_aliases_are_given_where_comfyui_knows_them(self, comfy):
        """Since 0.11; 0.3.64 refuses a schema that has them."""
        definitions = comfy.get("/object_info").json()
        known = comfy.checkout.version_tuple >= (0, 11)
        assert ("search_aliases" in definitions["KSampler"]) is known
        for name in json.loads((Path(__file__).parent / "interface.json").read_text(encoding="utf-8")):
            assert bool(definitions[name].get("search_aliases")) is known


class TestStart:
    def test_the_pack_loads_without_a_library_that_comfyui_has_not_loaded(self, comfy):
        """In ComfyUI's own interpreter: what the pack adds to torch and ComfyUI. The time is for whoever reads it."""
        code = (
            "import asyncio, importlib.util, sys, time\n"
            "sys.path.insert(0, sys.argv[2])\n"
            "sys.argv = sys.argv[:2] + ['--cpu']\n"
            "pack = sys.argv.pop(1)\n"
            "import torch, folder_paths\n"
            "from comfy_api.latest import io\n"
            "before = set(sys.modules)\n"
            "spec = importlib.util.spec_from_file_location('pack', pack + '/__init__.py', "
            "submodule_search_locations=[pack])\n"
            "start = time.perf_counter()\n"
            "module = importlib.util.module_from_spec(spec)\n"
            "sys.modules['pack'] = module\n"
            "spec.loader.exec_module(module)\n"
            "extension = asyncio.run(module.comfy_entrypoint())\n"
            "nodes = asyncio.run(extension.get_node_list())\n"
            "for node in nodes: node.GET_SCHEMA()\n"
            "print('seconds', time.perf_counter() - start)\n"
            "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
            "print('new', sorted(new - set(sys.stdlib_module_names)))\n"
        )
        output = subprocess.run(
            [comfy.checkout.python, "-c", code, str(ROOT), str(comfy.checkout.path)],
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin", "HOME": str(comfy.base), "PYTHONDONTWRITEBYTECODE": "1"},
            check=False,
        )
        assert output.returncode == 0, output.stderr
        lines = dict(line.split(" ", 1) for line in output.stdout.splitlines() if line.startswith(("seconds", "new")))
        print(f"ComfyUI {comfy.version}: the pack loads in {lines['seconds']} s")
        assert lines["new"] == "['pack']"

    def test_a_stage_is_moved_whole_in_every_memory_mode(self, comfy):
        """Also with --novram, where ComfyUI's own patcher leaves its layers on the CPU."""
        probe = subprocess.run(
            [comfy.checkout.python, str(Path(__file__).with_name("memory_probe.py")), str(ROOT), comfy.checkout.path],
            capture_output=True,
            text=True,
            check=False,
        )
        assert probe.returncode == 0, probe.stderr
        found = json.loads(probe.stdout.splitlines()[-1])
        assert {mode: moved["ours"] for mode, moved in found.items()} == {
            mode: [["npu"], ["cpu"], ["npu"]] for mode in ("NORMAL_VRAM", "LOW_VRAM", "NO_VRAM", "HIGH_VRAM")
        }
        assert found["NORMAL_VRAM"]["usual"] == ["npu"] and found["NO_VRAM"]["usual"] == ["cpu"]

    def test_nothing_failed_to_import(self, comfy):
        log = comfy.log_text()
        assert "IMPORT FAILED" not in log and "Error while calling comfy_entrypoint" not in log

    def test_extra_model_paths(self, probed_client):
        """That server was started with an extra_model_paths.yaml, the other one without."""
        info = probed_client.object_info("DeepGenLoader")["DeepGenLoader"]["input"]["required"]["model"]
        assert "from_extra_path" in json.dumps(info)
