"""What users read: names and tooltips, help pages, and what the node search finds, in English and Chinese."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dev.comfyui.words import keys, texts_of


ROOT = Path(__file__).parents[2]
DOCS = ROOT / "web" / "docs"
SERVED = "/extensions/ComfyUI-DeepGen/docs"
LANGUAGES = ("en", "zh")
CHINESE = re.compile("[\u4e00-\u9fff]")
IMAGE_LINK = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")
# Terms that Chinese users know as they are.
SAME_IN_CHINESE = {"CFG", "VAE", "Latent"}


def locale(language: str, file: str = "nodeDefs") -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / f"{file}.json").read_text(encoding="utf-8"))


def page(node: str, language: str) -> Path:
    """The English page has no language in its path: it is also served where there is none in the user's language."""
    return DOCS / (f"{node}.md" if language == "en" else f"{node}/{language}.md")


def flat(texts: dict[str, Any]) -> dict[str, str]:
    found = {}
    for path in keys(texts):
        value: Any = texts
        for key in path.split("."):
            value = value[key]
        found[path] = value
    return found


@pytest.fixture
def english(comfy) -> dict[str, Any]:
    """The texts of the schemas."""
    return texts_of(comfy.get("/object_info").json())


class TestNamesAndTooltips:
    def test_english_is_that_of_the_nodes(self, english):
        assert english
        assert locale("en") == english, "run python -m dev.export_locale_en"

    def test_chinese_has_the_same_texts(self, english):
        chinese = locale("zh")
        assert keys(chinese) == keys(english)
        untranslated = {path for path, text in flat(chinese).items() if not CHINESE.search(text)}
        assert {flat(chinese)[path] for path in untranslated} == SAME_IN_CHINESE
        assert all(path.endswith(".name") for path in untranslated)
        for node, texts in chinese.items():
            assert texts["display_name"].startswith("DeepGen "), node

    @pytest.mark.parametrize("language", LANGUAGES)
    def test_the_server_offers_them_in_the_front_ends_syntax(self, comfy, language):
        served = comfy.get("/i18n").json()[language]
        assert served["nodeDefs"] == locale(language)
        assert served["nodeCategories"] == {"DeepGen": "DeepGen"}
        # Braces, @ and | have a meaning for the front end: a text with them is not shown as it is written.
        assert not [path for path, text in flat(locale(language)).items() if re.search(r"[{}@|]", text)]


class TestHelpPages:
    def test_there_is_one_for_each_node_in_each_language(self, comfy, english):
        expected = {page(node, language) for node in english for language in LANGUAGES}
        assert set(DOCS.rglob("*.md")) == expected
        for path in expected:
            assert comfy.get(f"{SERVED}/{path.relative_to(DOCS).as_posix()}").body == path.read_bytes()

    def test_they_have_the_name_of_the_node_and_all_its_inputs(self, english):
        for node, texts in english.items():
            for language in LANGUAGES:
                text = page(node, language).read_text(encoding="utf-8")
                display_name = locale(language)[node]["display_name"]
                assert text.startswith(f"# {display_name.split(chr(0xFF08))[0]}"), (node, language)
                section = text.split("\n## ")[1]
                assert set(re.findall(r"`(\w+)`", section)) >= set(texts["inputs"]), (node, language)

    def test_both_languages_say_the_same(self, english):
        """As far as that can be seen: the same sections, lists and images, the same code."""
        for node in english:
            shapes = []
            for language in LANGUAGES:
                text = page(node, language).read_text(encoding="utf-8")
                lines = text.splitlines()
                marks = [match.group() for line in lines if (match := re.match(r"#+ |- |```", line))]
                images = [link.replace(".zh.", ".") for link in IMAGE_LINK.findall(text)]
                shapes.append((marks, images, sorted(set(re.findall(r"\*\*\"([^\"]+)\"", text)))))
                assert max(map(len, lines)) <= 119, (node, language)
            assert shapes[0] == shapes[1], node

    def test_images(self, comfy, english):
        named = set()
        for node in english:
            for language in LANGUAGES:
                # The front ends resolve a link against docs/, whatever folder the page is in.
                links = IMAGE_LINK.findall(page(node, language).read_text(encoding="utf-8"))
                assert links, (node, language)
                named |= set(links)
        assert named == {path.relative_to(DOCS).as_posix() for path in (DOCS / "images").iterdir()}
        for link in named:
            assert comfy.get(f"{SERVED}/{link}").body == (DOCS / link).read_bytes()
            assert (DOCS / link).stat().st_size <= 60_000
            with Image.open(DOCS / link) as image:
                assert not image.getexif()


# What somebody types, and a node that must be found by it. The Chinese ones: "generate", "text to image", "edit",
# "image editing", "image to image", "prompt", "sampler", "load".
SEARCHES = {
    "en": [
        ("DeepGen", "DeepGenLoader"),
        ("generate", "DeepGenTextToImage"),
        ("text to image", "DeepGenTextToImage"),
        ("edit", "DeepGenEdit"),
        ("edit image", "DeepGenEdit"),
        ("deepgen sampler", "DeepGenSample"),
    ],
    "zh": [
        ("DeepGen", "DeepGenLoader"),
        ("\u751f\u6210", "DeepGenTextToImage"),
        ("\u6587\u751f\u56fe", "DeepGenTextToImage"),
        ("\u7f16\u8f91", "DeepGenEdit"),
        ("\u56fe\u50cf\u7f16\u8f91", "DeepGenEdit"),
        ("\u56fe\u751f\u56fe", "DeepGenEdit"),
        ("\u63d0\u793a\u8bcd", "DeepGenEncode"),
        ("deepgen \u91c7\u6837\u5668", "DeepGenSample"),
        ("deepgen \u52a0\u8f7d", "DeepGenLoader"),
    ],
}

ADD_NODE = """
type => {
    const node = LiteGraph.createNode(type);
    app.graph.clear();
    app.graph.add(node);
    node.pos = [500, 250];
    app.canvas.ds.offset = [0, 0];
    app.canvas.ds.scale = 1;
    return {
        title: node.title,
        inputs: Object.fromEntries(node.inputs.map(input => [input.name, input.label ?? input.localized_name])),
        widgets: Object.fromEntries(node.widgets.map(widget => [widget.name, widget.label])),
        outputs: node.outputs.map(output => output.label ?? output.localized_name),
    };
}
"""


SEARCH_BOX = "input[id^=comfy-vue-node-search-box-input], input[role=combobox]"


def open_help(browser) -> None:
    """By the button over the selected node."""
    browser.evaluate("() => app.canvas.selectItems(app.graph.nodes)")
    # Not a click by position: the button may still be on its way there.
    browser.locator("[data-testid=info-button]").dispatch_event("click")


@pytest.mark.parametrize("language", LANGUAGES)
def test_in_the_front_end(comfy, comfy_browser, language):
    """A node's texts, its help page with the image, and the search, as a user of that language meets them."""
    texts, node = locale(language)["DeepGenEdit"], "DeepGenEdit"
    with comfy_browser.open(comfy, {"Comfy.Locale": language}) as session:
        browser = session.page
        shown = browser.evaluate(ADD_NODE, node)
        names = {key: value["name"] for key, value in texts["inputs"].items()}
        assert shown["title"] == texts["display_name"]
        assert shown["inputs"] == names
        assert names.items() >= {k: v for k, v in shown["widgets"].items() if k in names}.items()
        assert shown["outputs"] == [output["name"] for output in texts["outputs"].values()]

        open_help(browser)
        help_page = browser.locator(".node-help-content")
        heading = page(node, language).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        help_page.locator("h1", has_text=heading).wait_for()
        # Larger than the space that a browser gives an image it could not load.
        browser.wait_for_function("() => document.querySelector('.node-help-content img')?.naturalWidth > 500")

        browser.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
        search = browser.locator(SEARCH_BOX).locator("visible=true")
        for word, found in SEARCHES[language]:
            # What the word before has found stays in view for a while.
            search.fill("qqqqqqqq")
            browser.locator("[role=option]", has_text="DeepGen").first.wait_for(state="hidden")
            search.fill(word)
            name = locale(language)[found]["display_name"]
            browser.locator("[role=option]", has_text=name).first.wait_for(timeout=10_000)
        # The front end asks for a page in the user's language first, and the English one has none in its path.
        errors = [error for error in session.console_errors if f"{node}/en.md" not in error]
        assert errors == [] and session.page_errors == []
