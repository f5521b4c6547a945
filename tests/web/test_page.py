#!/usr/bin/env python3
"""The page at `/` and the reference at `/docs`, in a real browser against a real server with the bundled model.

usage: test_page.py [NAME...]    as `python -m unittest` takes names; HUSH_SERVER and HUSH_MODELS say what to run
"""

import base64
import json
import os
import re
import sys
import tempfile
import unittest
import wave

import harness
from harness import AUDIO, Browser, Server, wait_for

PAGE_LIMIT_BYTES = 100_000
scratch = tempfile.TemporaryDirectory()


def spoken(name, repeat=1, silence_seconds=0.0):
    """A WAV file of a fixture, said `repeat` times with silence around each; in a folder that goes away."""
    path = os.path.join(scratch.name, f"{name}-{repeat}-{silence_seconds}.wav")
    with wave.open(str(AUDIO / f"{name}.wav")) as source, wave.open(path, "wb") as target:
        target.setparams(source.getparams())
        silence = bytes(2 * int(silence_seconds * source.getframerate()))
        target.writeframes((silence + source.readframes(source.getnframes()) + silence) * repeat)
    return path


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.browser = Browser(microphone=spoken("en-2", silence_seconds=1.0))

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        cls.server.stop()

    def setUp(self):
        self.browser.emulate()
        self.browser.open(self.server.address)
        self.browser.js("localStorage.clear(); sessionStorage.clear()")
        self.browser.open(self.server.address)
        self.browser.until_state("ready")
        wait_for("the models are shown", lambda: self.browser.js("return document.querySelector('#models-list li')"))
        self.browser.complaints()

    def transcribe(self, name):
        self.browser.drop(AUDIO / name)
        self.assertEqual(self.browser.until_state("done", "failed"), "done", self.browser.text("#stage"))
        return self.browser.text("#text")

    def no_serious_finding(self, where):
        findings = self.browser.axe()
        print(f"axe, {where}: {len(findings)} findings {findings or ''}")
        self.assertEqual([f for f in findings if f[0] in ("serious", "critical")], [], where)

    def test_a_dropped_file_becomes_the_words_of_the_reference(self):
        for name, words in [("en-2.wav", "The window is blue."), ("de-2.wav", "Putze die Stadt.")]:
            self.assertEqual(self.transcribe(name), words)
            self.assertIn(name, self.browser.text("[data-pane=done] .what"))
            self.browser.click("#new")
        self.assertEqual(self.browser.complaints(), [])

    def test_a_chosen_file_is_translated(self):
        self.browser.find("#task").send_keys("English translation")
        self.browser.find("#language").send_keys("German")
        self.browser.find("#file").send_keys(str(AUDIO / "de-2.wav"))
        self.browser.until_state("done")
        self.assertEqual(self.browser.text("#text"), "Clean the city.")

    def test_the_microphone_is_heard(self):
        self.browser.find("#language").send_keys("English")
        self.browser.click("#record")
        self.browser.until_state("recording")
        wait_for("five seconds are recorded", lambda: self.browser.text("#clock") >= "0:05")
        self.no_serious_finding("recording")
        self.browser.click("#stop")
        self.assertEqual(self.browser.until_state("done", "failed"), "done", self.browser.text("#stage"))
        text = self.browser.text("#text").lower()
        self.assertTrue({"window", "blue"} <= set(re.findall(r"\w+", text)), text)
        # The microphone is let go, and what was recorded can be heard.
        wait_for("the recording can be played",
                 lambda: self.browser.js("return document.querySelector('#audio').readyState > 0"))
        self.browser.click("#new")
        self.browser.click("#record")
        self.browser.until_state("recording")
        self.browser.click("#discard")
        self.browser.until_state("ready")
        self.assertEqual(self.browser.complaints(), [])

    def test_text_comes_while_the_rest_is_decoded_and_can_be_cancelled(self):
        # Ten minutes: some twenty windows.
        self.browser.find("#language").send_keys("English")
        self.browser.drop(spoken("en-2", repeat=200, silence_seconds=0.8))
        wait_for("text while it works", lambda: self.browser.state() == "working" and self.browser.text("#text"))
        self.assertEqual(self.browser.js("return document.querySelector('#text').ariaBusy"), "true")
        self.browser.until_text("#models-now", "working")
        self.browser.click("#cancel")
        self.browser.until_state("ready")
        self.assertEqual(self.browser.text("#status"), "Cancelled.")
        self.assertTrue(self.browser.find("#copy").get_attribute("disabled"), "a part is not offered as the whole")
        wait_for("the server stops working on it", lambda: self.server.models()[0]["inflight_requests"] == 0)
        self.assertIn("window", self.transcribe("en-2.wav"), "the page goes on")

    def test_the_upload_shows_how_far_it_is(self):
        self.browser.cdp("Network.enable")
        self.browser.cdp("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1,
                         uploadThroughput=2_000_000)
        self.browser.drop(spoken("en-2", repeat=200, silence_seconds=0.8))
        wait_for("a part is sent", lambda: re.fullmatch(r"Sending, [1-9]\d? %", self.browser.text("#step")))
        value = self.browser.js("return document.querySelector('#progress').value")
        self.assertTrue(0 < value <= 1, value)
        self.browser.click("#cancel")
        self.browser.until_state("ready")
        self.browser.cdp("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1,
                         uploadThroughput=-1)

    def test_files_are_saved_as_the_server_writes_them(self):
        self.browser.find("#language").send_keys("English")
        self.transcribe("long-en.flac")
        for output in ("txt", "srt", "vtt"):
            self.browser.click(f"[data-save={output}]")
            expected = self.server.asr(AUDIO / "long-en.flac", f"?language=en&output={output}")
            self.assertEqual(self.browser.downloaded(f"long-en.{output}"), expected, output)
        self.browser.click("[data-save=json]")
        saved = json.loads(self.browser.downloaded("long-en.json"))
        self.assertEqual(saved["language"], "english")
        self.assertAlmostEqual(saved["duration"], 77.3, delta=0.1)
        self.assertGreater(len(saved["segments"]), 3)

    def test_text_is_copied(self):
        self.browser.cdp("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
        self.transcribe("en-2.wav")
        self.browser.click("#copy")
        self.browser.until_text("#copy", "Copied")
        copied = self.browser.driver.execute_async_script(
            "navigator.clipboard.readText().then(arguments[0], (error) => arguments[0](String(error)))")
        self.assertEqual(copied, "The window is blue.")

    def test_a_time_plays_from_there(self):
        self.browser.click("#times")
        self.browser.find("#language").send_keys("English")
        self.transcribe("long-en.flac")
        times = self.browser.js("return [...document.querySelectorAll('.time')].map((time) => +time.dataset.start)")
        self.assertEqual(times, sorted(times))
        self.browser.js("document.querySelectorAll('.time')[2].click()")
        wait_for("it plays from there",
                 lambda: self.browser.js("return document.querySelector('#audio').currentTime") >= times[2] > 0)
        self.browser.open(self.server.address)
        self.assertTrue(self.browser.find("#times").is_selected(), "the choice is kept")

    def test_a_broken_file_is_explained(self):
        path = os.path.join(scratch.name, "notes.mp3")
        with open(path, "w") as file:
            file.write("these are notes, not sound\n" * 100)
        self.browser.drop(path)
        self.assertEqual(self.browser.until_state("done", "failed"), "failed")
        self.assertIn("ffmpeg", self.browser.text("#remedy"))
        self.assertGreater(len(self.browser.text("#problem")), 15)
        self.no_serious_finding("a broken file")
        self.browser.click("#retry")
        self.browser.until_state("failed")
        self.browser.click("#back")
        self.assertEqual(self.transcribe("en-2.wav"), "The window is blue.")

    def test_silence_is_said_to_be_silence(self):
        self.assertEqual(self.transcribe("silence.flac"), "Nothing was said in this recording.")

    def test_the_keyboard_reaches_everything(self):
        reached = []
        for _ in range(12):
            self.browser.cdp("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
            self.browser.cdp("Input.dispatchKeyEvent", type="keyUp", key="Tab", code="Tab", windowsVirtualKeyCode=9)
            reached.append(self.browser.js("""
                const at = document.activeElement;
                const shown = at.id === 'file' ? document.querySelector('#drop') : at;
                return [at.id || at.textContent.trim(), getComputedStyle(shown).outlineStyle];
            """))
        names = [name for name, _ in reached]
        for name in ("Skip to the recording", "Hush", "file", "record", "language", "task", "times", "HTTP API"):
            self.assertIn(name, names)
        self.assertEqual({outline for _, outline in reached[:10]}, {"solid"}, "focus is seen")

    def test_nobody_is_kept_out(self):
        for dark in (False, True):
            colours = "dark" if dark else "light"
            self.browser.emulate(dark=dark, still=True)
            self.no_serious_finding(f"ready, {colours}")
            self.transcribe("en-2.wav")
            self.no_serious_finding(f"done, {colours}")
            self.browser.click("#models summary")
            self.no_serious_finding(f"the models, {colours}")
            self.browser.click("#models summary")
            self.browser.emulate(width=390, height=844, dark=dark, still=True)
            self.no_serious_finding(f"phone, {colours}")
            wide = self.browser.js("return document.documentElement.scrollWidth")
            self.assertLessEqual(wide, 390, "nothing sticks out on a phone")
            self.browser.emulate(dark=dark)
            self.browser.click("#new")

    def test_the_page_is_light(self):
        self.browser.cdp("Network.clearBrowserCache")
        self.browser.open(self.server.address)
        sizes = self.browser.js("""
            const loaded = [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
                .filter(({ name }) => !name.includes('/v1/'));
            return loaded.map(({ name, encodedBodySize, decodedBodySize }) => [name, encodedBodySize, decodedBodySize]);
        """)
        sent, unpacked = sum(size for _, size, _ in sizes), sum(size for _, _, size in sizes)
        wait_for("the page is loaded",
                 lambda: self.browser.js("return performance.getEntriesByType('navigation')[0].loadEventEnd > 0"))
        seconds = self.browser.js("return performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000
        print(f"page: {len(sizes)} files, {sent} bytes sent, {unpacked} unpacked, loaded in {seconds * 1000:.0f} ms")
        self.assertLess(unpacked, PAGE_LIMIT_BYTES)
        self.assertEqual([name for name, _, _ in sizes if not name.startswith(self.server.address)], [])

    def test_the_reference_shows_every_route(self):
        self.browser.open(self.server.address + "/docs")
        document = json.loads(self.browser.driver.execute_async_script(
            "fetch('openapi.json').then((answer) => answer.text()).then(arguments[0])"))
        routes = sum(len(methods) for methods in document["paths"].values())
        wait_for("every route is there", lambda: self.browser.js(
            "return document.querySelectorAll('.opblock').length") == routes)
        self.assertEqual(self.browser.complaints(), [])
        origins = self.browser.js(
            "return performance.getEntriesByType('resource').map(({ name }) => new URL(name).origin)")
        self.assertEqual(set(origins), {self.server.address})

    def test_pictures(self):
        """Written into docs/images where HUSH_WRITE_IMAGES is set; otherwise it only looks that there are some."""
        self.browser.emulate(width=1100, height=860, still=True)
        self.browser.click("#times")
        self.browser.find("#language").send_keys("English")
        self.transcribe("long-en.flac")
        pictures = {}
        for name, options in [("page", dict(width=1100, height=900)), ("page-phone", dict(width=390, height=844, dark=True))]:
            self.browser.emulate(**options, still=True)
            self.browser.js("document.activeElement.blur(); scrollTo(0, 0)")
            shot = self.browser.cdp("Page.captureScreenshot", format="webp", quality=85)
            pictures[name] = base64.b64decode(shot["data"])
        for name, picture in pictures.items():
            path = harness.ROOT / "docs/images" / f"{name}.webp"
            if os.environ.get("HUSH_WRITE_IMAGES"):
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(picture)
            self.assertTrue(path.exists(), path)
            self.assertGreater(len(picture), 5_000, "more than one colour")


class OtherServers(unittest.TestCase):
    """What needs a server or a browser of its own."""

    def start(self, *arguments, port=None):
        server = Server(*arguments, port=port)
        self.addCleanup(server.stop)
        return server

    def browse(self, address, **options):
        browser = Browser(**options)
        self.addCleanup(browser.close)
        browser.open(address)
        browser.until_state("ready")
        return browser

    def test_the_model_wakes_counts_down_and_sleeps(self):
        server = self.start("--idle-timeout", "4s")
        browser = self.browse(server.address)
        browser.until_text("#models-now", "asleep")
        browser.drop(AUDIO / "en-1.wav")
        browser.until_state("done")
        browser.until_text("#models-now", "awake, leaves in 0:0")
        browser.until_text("#models-now", "asleep")

    def test_a_lost_server_is_told_and_found_again(self):
        server = Server()
        browser = self.browse(server.address)
        browser.until_text("#models-now", "asleep")
        server.stop()
        browser.until_text("#offline", "The server does not answer")
        browser.until_text("#models-now", "not connected")
        browser.drop(AUDIO / "en-1.wav")
        browser.until_state("failed")
        browser.until_text("#problem", "The connection to the server was lost")
        self.start(port=server.port)
        browser.until_text("#models-now", "asleep")
        self.assertFalse(browser.find("#offline").is_displayed())
        browser.click("#retry")
        browser.until_state("done")

    def test_a_key_is_asked_for(self):
        keys = os.path.join(scratch.name, "keys")
        with open(keys, "w") as file:
            file.write("page 0123456789abcdef0123456789abcdef\n")
        server = self.start("--api-keys-file", keys)
        browser = self.browse(server.address)
        wait_for("a key is asked for", lambda: browser.find("#key-form").is_displayed())
        self.assertEqual([f for f in browser.axe() if f[0] in ("serious", "critical")], [])
        browser.find("#key").send_keys("a-bad-key\n")
        browser.until_text("#key-hint", "does not know this key")
        browser.find("#key").send_keys("0123456789abcdef0123456789abcdef\n")
        browser.until_text("#models-now", "asleep")
        self.assertFalse(browser.find("#key-form").is_displayed())
        browser.drop(AUDIO / "en-1.wav")
        browser.until_state("done")
        self.assertEqual(browser.text("#text"), "Clean the light.")

    def test_no_microphone_is_explained(self):
        server = self.start()
        for options, address, words in [
            (dict(microphone=spoken("en-1"), permitted=False), server.address, "blocked"),
            (dict(), server.address, "no microphone"),
            (dict(), f"http://hush.test:{server.port}", "HTTPS"),
        ]:
            browser = self.browse(address, **options)
            browser.click("#record")
            browser.until_state("failed")
            self.assertIn(words, browser.text("#problem"))
            self.assertIn("file", browser.text("#remedy"))
            browser.click("#back")
            browser.drop(AUDIO / "en-1.wav")
            browser.until_state("done")


if __name__ == "__main__":
    absent = harness.missing()
    if absent:
        print(f"test-web is SKIPPED; missing: {', '.join(absent)}", file=sys.stderr)
        sys.exit(0)
    unittest.main(verbosity=2)
