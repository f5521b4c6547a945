"""Every example of the documentation is one: configurations are taken, policies are valid, commands exist, and what a
console shows is what is printed.

HUSH_WRITE_EXAMPLES=1 writes the output of every console anew; look at the difference before you commit it.
"""
import json
import os
import pathlib
import re
import tempfile
import unittest

import jsonschema
import yaml

from book import DOCS, MODELS, ONNXRUNTIME, ROOT, Page, pages
from run import Sandbox, same, words

# Its server has to be there first: test_start.py.
ELSEWHERE = {DOCS / "start.md"}
PAGES = [page for page in pages() if page.path not in ELSEWHERE]
ALL = pages()
SHELL = ("sh", "console")
WRITE = os.environ.get("HUSH_WRITE_EXAMPLES") == "1"


def kind(content) -> str:
    """What a file in YAML is for."""
    if "apiVersion" in content and content["apiVersion"].startswith("gpu.hush.dev/"):
        return "policy"
    if content.get("apiVersion", "").startswith("cert-manager.io/"):
        return "certificates"
    if "apiVersion" in content and "kind" in content:
        return "object"
    if "rules" in content and "seriesQuery" in content["rules"][0]:
        return "adapter"
    if "services" in content:
        return "compose"
    if "targets" in content:
        return "targets"
    if "gpus" in content and "now" in content:
        return "world"
    if "models" in content and content["models"] in ("named", "one"):
        return "app"
    if "attributionBytes" in content:
        return "sidecar"
    values = json.loads((ROOT / "charts/hush/values.schema.json").read_text())["properties"]
    return "values" if set(content) <= set(values) else "config"


def without_nulls(values):
    """As helm does before it compares values with the schema: a null takes a default away."""
    if isinstance(values, dict):
        return {key: without_nulls(value) for key, value in values.items() if value is not None}
    return values


class Examples(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="hush-docs-")
        self.addCleanup(self.folder.cleanup)
        self.sandbox = Sandbox(pathlib.Path(self.folder.name))

    def ran(self, command: str, place: str) -> str:
        status, printed = self.sandbox.run(command)
        self.assertEqual(status, 0, f"{place}: {command}\n{printed}")
        return printed

    def test_yaml(self):
        counts: dict[str, int] = {}
        for page in ALL:
            for block in (block for block in page.blocks if block.language == "yaml"):
                with self.subTest(block.place):
                    documents = [document for document in yaml.safe_load_all(block.text) if document]
                    what = kind(documents[0])
                    counts[what] = counts.get(what, 0) + 1
                    self.check(what, block, documents)
        self.assertGreater(counts["policy"], 10, counts)
        self.assertGreater(counts["config"], 0, counts)

    def check(self, what: str, block, documents):
        file = self.sandbox.folder / "example.yaml"
        file.write_text(block.text)
        if what == "policy":
            printed = self.ran(f"hush-controller check {file}", block.place)
            self.assertEqual(printed.count("is valid"), len(documents), block.place)
        elif what == "certificates":
            self.certificates(block.place, documents)
        elif what == "config":
            models = f"--models-dir {MODELS} --ort-lib {ONNXRUNTIME} --install-missing false"
            status, printed = self.sandbox.run(f"hush-server serve --config {file} --check-config {models}")
            # Its models need not be here.
            self.assertTrue(status == 0 or "is not installed" in printed, f"{block.place}\n{printed}")
        elif what in ("object", "adapter"):
            # Objects of other projects' kinds; a real API server checks them in test_objects.py.
            for document in documents:
                self.assertEqual(kind(document), what, block.place)
        elif what == "world":
            self.ran(f"hush-controller plan --world {file}", block.place)
        elif what == "values":
            schema = json.loads((ROOT / "charts/hush/values.schema.json").read_text())
            jsonschema.validate(without_nulls(documents[0]), schema)
        elif what == "app":
            # Beyond the schema, the tests of the sidecar check it.
            jsonschema.validate(documents[0], json.loads((ROOT / "docs/app-description.schema.json").read_text()))
        elif what == "sidecar":
            # The file is read before the limits of the command line are checked.
            status, printed = self.sandbox.run(f"hush-sidecar --app ollama --upstream http://127.0.0.1:1 --config {file} --max-queue 0")
            self.assertEqual((status, "--max-queue 0: it must be" in printed), (1, True), f"{block.place}\n{printed}")
        elif what == "targets":
            empty = self.sandbox.folder / "none.yaml"
            empty.write_text("apiVersion: gpu.hush.dev/v1beta1\nkind: GpuModelPolicy\nmetadata: {name: none}\n"
                             "spec: {selector: {matchLabels: {app: none}}}\n")
            self.ran(f"hush-controller plan --policy {empty} --targets {file} --scrape-timeout 1ms", block.place)
        else:
            self.assertEqual(what, "compose")
            self.assertTrue(block.not_run, f"{block.place}: a file for Docker is not tested; say why")

    def certificates(self, place: str, documents) -> None:
        """Each issuer is there, and what servers get has the name that the controller checks."""
        issuers = {document["metadata"]["name"] for document in documents if document["kind"] == "ClusterIssuer"}
        ours = [document for document in documents if document["kind"] == "Certificate"]
        for certificate in ours:
            self.assertIn(certificate["spec"]["issuerRef"]["name"], issuers, place)
        servers = [certificate for certificate in ours if not certificate["spec"].get("isCA")]
        self.assertTrue(servers, place)
        for certificate in servers:
            namespace = certificate["metadata"]["namespace"]
            self.assertEqual(certificate["spec"]["dnsNames"], [f"hush-server.{namespace}.svc"], place)
            self.assertIn("server auth", certificate["spec"]["usages"], place)

    def test_consoles_print_what_they_show(self):
        ran = 0
        for page in PAGES:
            folder = tempfile.TemporaryDirectory(prefix="hush-docs-")
            self.addCleanup(folder.cleanup)
            self.sandbox = Sandbox(pathlib.Path(folder.name))
            outputs = {}
            for block in page.blocks:
                if block.language in ("yaml", "csv"):
                    self.sandbox.write(block)
                elif block.language == "console" and not block.not_run:
                    printed = [(command, self.ran(command, block.place), shown) for command, shown in block.steps()]
                    ran += len(printed)
                    if WRITE:
                        outputs[block.line] = printed
                        continue
                    for command, output, shown in printed:
                        self.assertTrue(same(shown, output), f"{block.place}: {command}\nprints\n{output}\nand not\n" +
                                        "\n".join(shown))
            if outputs:
                rewrite(page, outputs)
        self.assertGreater(ran, 8)

    def test_every_command_is_run_or_says_why_not(self):
        for page in PAGES:
            for block in page.blocks:
                if block.language == "sh" and not block.not_run:
                    with self.subTest(block.place):
                        self.ran(block.script(), block.place)

    def test_options_of_our_programs(self):
        options: dict[tuple[str, str], set[str]] = {}
        seen = 0
        for page in ALL:
            for block in (block for block in page.blocks if block.language in SHELL):
                for command in words(block.script()):
                    seen += self.known(command, block, options)
        self.assertGreater(seen, 20)

    def known(self, command: list[str], block, options) -> int:
        while command and ("=" in command[0].lstrip("-") or command[0] == "exec"):
            command = command[1:]
        if len(command) < 2 or command[0].rsplit("/", 1)[-1] not in ("hush-server", "hush-controller", "hush-sidecar"):
            return 0
        program, sub, *rest = command
        program = program.rsplit("/", 1)[-1]
        if program == "hush-sidecar" and sub.startswith("--"):
            # It has options without a subcommand, and behind `--` the command of an app.
            sub, rest = "", command[1:command.index("--") if "--" in command else None]
        if (program, sub) not in options:
            help_text = self.ran(f"{program} {sub} --help", block.place)
            options[program, sub] = set(re.findall(r"^ +(?:-\w, +)?(--[a-z-]+)", help_text, re.M))
        for word in (word for word in rest if word.startswith("--")):
            self.assertIn(word.split("=")[0], options[program, sub], f"{block.place}: {program} {sub}")
        return 1

    def test_files_and_values_of_helm(self):
        schema = json.loads((ROOT / "charts/hush/values.schema.json").read_text())
        from test_book import has
        seen = 0
        for page in ALL:
            for block in (block for block in page.blocks if block.language in SHELL):
                for command in (command for command in words(block.script()) if command[0] == "helm"):
                    seen += 1
                    for option, value in zip(command, command[1:]):
                        if option == "--values":
                            self.assertTrue((ROOT / value).exists(), f"{block.place}: {value}")
                        elif option == "--set":
                            keys = value.split("=")[0].replace("[0]", "").split(".")
                            self.assertTrue(has(schema, schema, keys), f"{block.place}: {value}")
        self.assertGreater(seen, 3)


def rewrite(page: Page, outputs):
    lines = list(page.lines)
    for start in sorted(outputs, reverse=True):
        end = next(index for index in range(start, len(lines)) if lines[index] == "```")
        new = []
        for command, output, shown in outputs[start]:
            first, *more = command.split("\n")
            new += [f"$ {first}", *(f"> {line}" for line in more)]
            new += shown if same(shown, output) else [line.rstrip() for line in output.splitlines()]
        lines[start:end] = new
    page.path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    unittest.main()
