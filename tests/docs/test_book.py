"""The book holds together: every page is in it once, every link leads somewhere, every name exists."""
import json
import re
import subprocess
import unittest
import xml.dom.minidom

from book import DOCS, ROOT, Page, pages

PAGES = pages()
BY_PATH = {page.path: page for page in PAGES}


# Options of docker, helm and other programs; and placeholders for options.
OTHERS = {"--build-arg", "--reuse-values", "--set", "--values", "--host", "--port", "--some-name"}
# Options of apps, on docs/apps.md.
OTHERS |= {"--admin", "--adminunloadtimeout", "--allow-grpc", "--api", "--enable-memory-saver", "--enable-sleep-mode",
           "--enable-weights-cpu-backup", "--model-control-mode", "--models-max", "--no-models-autoload", "--routermode",
           "--sleep-idle-seconds"}


def reference(name: str) -> str:
    return (DOCS / "reference" / name).read_text()


class Links(unittest.TestCase):
    def test_every_page_is_in_the_summary_once(self):
        summary = BY_PATH[DOCS / "SUMMARY.md"]
        listed = [target for _, target in summary.links()]
        self.assertEqual(len(listed), len(set(listed)), "a page is listed twice")
        there = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} - {"SUMMARY.md"}
        self.assertEqual(set(listed), there)

    def test_the_summary_is_one_that_mdbook_reads(self):
        for number, line in BY_PATH[DOCS / "SUMMARY.md"].prose:
            known = re.fullmatch(r"|# .+|(?:- )?\[[^\]]+\]\([^)]+\.md\)", line)
            self.assertTrue(known, f"SUMMARY.md:{number}: {line}")

    def test_every_link_leads_somewhere(self):
        wrong, inside = [], 0
        for page in PAGES:
            for number, target in page.links():
                place = f"{page.path.relative_to(ROOT)}:{number}: {target}"
                if re.match(r"(https?|mailto):", target):
                    continue
                inside += 1
                path, _, anchor = target.partition("#")
                file = (page.path.parent / path).resolve() if path else page.path
                if not file.exists():
                    wrong.append(f"{place} does not exist")
                elif page.path.is_relative_to(DOCS) and not file.is_relative_to(DOCS):
                    wrong.append(f"{place} leads out of the book")
                elif anchor and (file not in BY_PATH or anchor not in BY_PATH[file].anchors()):
                    wrong.append(f"{place}: there is no such heading")
        self.assertEqual(wrong, [])
        self.assertGreater(inside, 100)

    def test_what_the_alerts_link_to(self):
        rules = (ROOT / "charts/hush/rules.yaml").read_text()
        anchors = set(re.findall(r"docs/runbooks\.md#(\S+)", rules))
        self.assertTrue(anchors)
        self.assertLessEqual(anchors, BY_PATH[DOCS / "runbooks.md"].anchors())


class Pictures(unittest.TestCase):
    def test_every_picture_is_told_in_words(self):
        seen = 0
        for page in PAGES:
            text = page.text()
            pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text)
            pictures += [(re.search(r"alt=\"([^\"]*)\"", tag)[1] if "alt=" in tag else "", tag) for tag in re.findall(r"<img [^>]+>", text)]
            for words, target in pictures:
                seen += 1
                self.assertGreater(len(words), 15, f"{page.path}: {target} has no words")
        self.assertGreaterEqual(seen, 4)

    def test_drawings_need_nothing_from_elsewhere_and_are_readable_in_the_dark(self):
        drawings = sorted((DOCS / "images").glob("*.svg"))
        for path in drawings:
            text = path.read_text()
            document = xml.dom.minidom.parseString(text)
            self.assertEqual(document.documentElement.tagName, "svg", path)
            self.assertIn("prefers-color-scheme: dark", text, path)
            self.assertTrue(document.getElementsByTagName("title"), path)
            outside = re.findall(r"(?:href|src)=\"(?!#)[^\"]*\"|url\((?!#)[^)]*\)|@import|<script", text)
            self.assertEqual(outside, [], path)

    def test_no_picture_is_left_over(self):
        used = {target.split("/")[-1] for page in PAGES for _, target in page.links() if "images/" in target}
        self.assertEqual({path.name for path in (DOCS / "images").iterdir()} - used, set())


class Names(unittest.TestCase):
    """What is named in the text exists."""

    def test_options(self):
        known = set(re.findall(r"`(?:-\w, )?(--[a-z][a-z-]*)", reference("options.md"))) | {"--help", "--version"}
        self.assertGreater(len(known), 60)
        wrong = []
        for page in PAGES:
            for number, code in page.code():
                # `--` alone ends the options.
                if not code.startswith("--") or code == "--":
                    continue
                option = re.match(r"--[a-z-]+", code)[0]
                if option not in known | OTHERS:
                    wrong.append(f"{page.path.relative_to(ROOT)}:{number}: {option}")
        self.assertEqual(wrong, [])

    def test_variables(self):
        known = set(re.findall(r"`(HUSH_[A-Z_]+)`", reference("options.md")))
        # Variables of tests and of Make; and placeholders for variables.
        others = {"HUSH_WRITE_IMAGES", "HUSH_WRITE_EXAMPLES", "HUSH_SOME_NAME", "HUSH_", "HUSH_CONTROLLER_"}
        wrong = []
        for page in PAGES:
            for number, line in enumerate(page.lines, 1):
                wrong += [f"{page.path.relative_to(ROOT)}:{number}: {name}" for name in re.findall(r"HUSH_[A-Z_]*", line)
                          if name not in known | others]
        self.assertEqual(wrong, [])

    def test_metrics(self):
        known = set(re.findall(r"`(hush_[a-z_]+)`", reference("metrics.md")))
        self.assertGreater(len(known), 40)
        rules = (ROOT / "charts/hush/rules.yaml").read_text()
        wrong = []
        for page in PAGES:
            for number, code in page.code():
                for name in re.findall(r"\bhush_[a-z_]+\b", code):
                    base = re.sub(r"_(bucket|sum|count)$", "", name)
                    crate = name in {"hush_server", "hush_sidecar", "hush_controller", "hush_core", "hush_whisper"}
                    if base not in known and f"record: {name}" not in rules and not crate:
                        wrong.append(f"{page.path.relative_to(ROOT)}:{number}: {name}")
        self.assertEqual(wrong, [])

    def test_files(self):
        """A path in backticks that begins with a folder of the repository."""
        folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")} - {"target"}
        wrong = []
        for page in PAGES:
            for number, code in page.code():
                if re.fullmatch(r"[\w.-]+(/[\w.*-]+)+/?", code) and code.split("/")[0] in folders:
                    if not any(ROOT.glob(code.rstrip("/"))):
                        wrong.append(f"{page.path.relative_to(ROOT)}:{number}: {code}")
        self.assertEqual(wrong, [])

    def test_targets_of_make(self):
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
        wrong = []
        for page in PAGES:
            told = [(number, code) for number, code in page.code()]
            told += [(block.line, block.script()) for block in page.blocks if block.language in ("sh", "console")]
            for number, code in told:
                for target in re.findall(r"(?:^|[;&] *)make ((?:[A-Z_]+=\S+ )*[a-z-]+)", code, re.M):
                    if target.split()[-1] not in targets:
                        wrong.append(f"{page.path.relative_to(ROOT)}:{number}: make {target}")
        self.assertEqual(wrong, [])

    def test_values_of_the_chart(self):
        """`server.gpu.count` and its like, down to the last key."""
        schema = json.loads((ROOT / "charts/hush/values.schema.json").read_text())
        tops = set(schema["properties"])
        wrong, seen = [], 0
        for page in PAGES:
            for number, code in page.code():
                path = re.fullmatch(r"([a-z][A-Za-z]*(?:(?:\.[a-z][A-Za-z]*)|\[\])+)", code.split(":")[0])
                keys = path[1].replace("[]", "").split(".") if path else []
                if len(keys) < 2 or keys[0] not in tops:
                    continue
                seen += 1
                if not has(schema, schema, keys):
                    wrong.append(f"{page.path.relative_to(ROOT)}:{number}: {code}")
        self.assertEqual(wrong, [])
        self.assertGreater(seen, 5)


class Messages(unittest.TestCase):
    def test_messages_are_those_of_the_code(self):
        """The first column of the troubleshooting page; `...` is what the code fills in."""
        sources = (path.read_text() for part in ("server", "controller", "crds", "listener", "log") for path in (ROOT / part).rglob("*.rs"))
        code = re.sub(r"\\\n *", "", "\n".join(sources))
        page = BY_PATH[DOCS / "troubleshooting.md"].text()
        wrong, seen = [], 0
        for row in re.findall(r"^\| (.+?) \|", page, re.M):
            for message in re.findall(r"`([^`]+)`", row):
                # Words of metrics, options and answers are checked elsewhere.
                if " " not in message or re.match(r"(GET|POST) |hush-|--log", message):
                    continue
                seen += 1
                parts = [part.strip() for part in message.split("...")]
                wrong += [message for part in parts if part and part not in code]
        self.assertEqual(wrong, [])
        self.assertGreater(seen, 40)


def has(whole: dict, schema: dict, keys: list[str]) -> bool:
    """Whether the schema knows a value by this path; what it leaves open is known."""
    while "$ref" in schema:
        schema = whole["definitions"][schema["$ref"].rsplit("/", 1)[1]]
    if schema.get("type") == "array":
        return has(whole, schema["items"], keys)
    if not keys:
        return True
    if keys[0] in schema.get("properties", {}):
        return has(whole, schema["properties"][keys[0]], keys[1:])
    return schema.get("additionalProperties", True) is not False


class Built(unittest.TestCase):
    def test_mdbook_builds_it(self):
        try:
            subprocess.run(["mdbook", "--version"], check=True, capture_output=True)
        except FileNotFoundError:
            self.skipTest("mdbook is not installed")
        made = subprocess.run(["make", "--no-print-directory", "docs"], cwd=ROOT, capture_output=True, text=True)
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertNotRegex(made.stdout + made.stderr, "WARN|ERROR")
        for page in PAGES:
            if page.path.is_relative_to(DOCS) and page.path.name not in ("SUMMARY.md", "README.md"):
                html = ROOT / "target/book" / page.path.relative_to(DOCS).with_suffix(".html")
                self.assertTrue(html.exists(), html)


if __name__ == "__main__":
    unittest.main()
