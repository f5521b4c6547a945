"""A real hush-server and a real headless Chromium, and the few things that tests do with them."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

ROOT = pathlib.Path(__file__).resolve().parents[2]
AUDIO = ROOT / "tests/fixtures/audio"
AXE = ROOT / ".hush/python/axe_playwright_python/axe.min.js"
# Far longer than anything here takes: a test that reaches it has failed.
DEADLINE_SECONDS = 120

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A name that is not this machine for the browser: pages from it are not trusted with a microphone.
    "--host-resolver-rules=MAP hush.test 127.0.0.1",
    "--autoplay-policy=no-user-gesture-required",
    "--window-size=1100,900",
]


def missing():
    """What keeps these tests from running on this machine; empty when nothing does."""
    absent = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    if not AXE.exists():
        absent.append(f"{AXE.relative_to(ROOT)} (`make test-web` fetches it)")
    return absent


def wait_for(what, condition, deadline_seconds=DEADLINE_SECONDS):
    """Asks `condition` until it gives something; `what` is named when it does not."""
    end = time.monotonic() + deadline_seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline_seconds} s in vain: {what}")
        time.sleep(0.02)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """`hush-server serve` with the bundled model."""

    def __init__(self, *arguments, port=None):
        self.port = port or free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HUSH_", "ASR_", "MODEL_IDLE"))}
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [
                os.environ["HUSH_SERVER"], "serve", "--model", "hush-tiny", "--models-dir", os.environ["HUSH_MODELS"],
                "--listen", f"127.0.0.1:{self.port}", "--ops-listen", "127.0.0.1:0", "--precision", "int8",
                "--ort-lib", str(ROOT / ".hush/lib/libonnxruntime.so"), *arguments,
            ],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.log,
        )
        wait_for("the server listens", self.answers)

    def answers(self):
        if self.process.poll() is not None:
            self.log.seek(0)
            raise AssertionError(f"hush-server ended:\n{self.log.read().decode()}")
        try:
            return urllib.request.urlopen(self.address + "/healthz").read() == b"ok"
        except OSError:
            return False

    def models(self):
        return json.load(urllib.request.urlopen(self.address + "/v1/hush/models"))["models"]

    def asr(self, path, query):
        """What whisper-asr-webservice's clients get for the same file."""
        boundary = b"hush-web-test"
        body = b"--%s\r\nContent-Disposition: form-data; name=\"audio_file\"; filename=\"x\"\r\n\r\n%s\r\n--%s--\r\n" % (
            boundary, path.read_bytes(), boundary)
        headers = {"Content-Type": "multipart/form-data; boundary=" + boundary.decode()}
        request = urllib.request.Request(f"{self.address}/asr{query}", body, headers)
        return urllib.request.urlopen(request).read().decode()

    def stop(self):
        self.process.terminate()
        self.process.wait(DEADLINE_SECONDS)
        self.log.close()


class Browser:
    """Chromium with an empty profile; `microphone`: a WAV file that the fake microphone plays."""

    def __init__(self, microphone=None, permitted=True):
        self.home = tempfile.TemporaryDirectory()
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in [*FLAGS, f"--user-data-dir={self.home.name}/profile"]:
            options.add_argument(flag)
        if microphone:
            options.add_argument("--use-fake-device-for-media-stream")
            options.add_argument(f"--use-file-for-fake-audio-capture={microphone}")
            options.add_argument(f"--use-fake-ui-for-media-stream{'' if permitted else '=deny'}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        self.driver.set_script_timeout(DEADLINE_SECONDS)
        self.downloads = pathlib.Path(self.home.name) / "downloads"
        self.downloads.mkdir()
        self.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))

    def cdp(self, command, **parameters):
        return self.driver.execute_cdp_cmd(command, parameters)

    def js(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def open(self, address):
        self.driver.get(address)

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.js("return document.querySelector(arguments[0]).innerText.trim()", selector)

    def click(self, selector):
        self.find(selector).click()

    def state(self):
        return self.js("return document.querySelector('#stage').dataset.state")

    def until_state(self, *states):
        return wait_for(f"the page is {' or '.join(states)}, not {self.state()}: {self.text('#stage')}",
                        lambda: self.state() in states and self.state())

    def until_text(self, selector, part):
        wait_for(f"{selector} says {part!r}, not {self.text(selector)!r}", lambda: part in self.text(selector))

    def drop(self, path, name=None):
        """Drops a file on the page, as a person does from another window."""
        # Through an input of the test's own: its file becomes what is dragged.
        self.js("""
            const input = Object.assign(document.createElement('input'), { type: 'file', id: 'test-input' });
            input.style.position = 'fixed';
            document.body.append(input);
        """)
        self.find("#test-input").send_keys(str(path))
        self.js("""
            const input = document.getElementById('test-input');
            let [file] = input.files;
            if (arguments[0]) file = new File([file], arguments[0], { type: file.type });
            input.remove();
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(file);
            const target = document.querySelector('#drop');
            for (const type of ['dragenter', 'dragover', 'drop']) {
                target.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
            }
        """, name)

    def emulate(self, width=1100, height=900, dark=False, still=False):
        self.cdp("Animation.enable"); self.cdp("Animation.setPlaybackRate", playbackRate=0.1)
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if width < 600 else 1,
                 mobile=width < 600)
        self.cdp("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ])

    def axe(self):
        """What axe-core finds here, `(impact, rule, where)`, once the animations that end have ended: text that is still
        faded in has too little contrast."""
        self.js(AXE.read_text())
        found = self.driver.execute_async_script("""
            const done = arguments[arguments.length - 1];
            const finite = document.getAnimations().filter((each) => each.effect.getComputedTiming().endTime < Infinity);
            Promise.allSettled(finite.map((each) => each.finished))
                .then(() => axe.run(document, { resultTypes: ['violations'] }))
                .then(({ violations }) => done(violations), (error) => done(String(error)));
        """)
        assert isinstance(found, list), found
        return [(rule["impact"], rule["id"], node["target"]) for rule in found for node in rule["nodes"]]

    def complaints(self):
        """Errors on the console since the last call: scripts that failed, policies that were broken."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def downloaded(self, name):
        path = self.downloads / name
        wait_for(f"{name} is saved", path.exists)
        return path.read_text()

    def close(self):
        self.driver.quit()
        self.home.cleanup()
