// The page: what a person does, and what it shows meanwhile.

import { Cancelled, Refused, hasKey, transcribe, useKey, watchModels } from './api.js';
import { shortClock } from './formats.js';
import { ModelBoard } from './models.js';
import { NoMicrophone, Recorder } from './recorder.js';
import { ResultCard } from './result.js';

const $ = (id) => document.getElementById(id);
const stage = $('stage');
const options = $('options');
const board = new ModelBoard($('models'));
const result = new ResultCard($('result'), (seconds) => {
  $('audio').currentTime = seconds;
  $('audio').play();
});

/** What was given last: `{file, name}`. */
let given = null;
let job = null;
let recorder = null;
let maxUploadBytes = Infinity;
let audioAddress = '';

/** `ready`, `recording`, `working`, `done` or `failed`: one pane of the stage is there at a time. */
function show(state) {
  stage.dataset.state = state;
  document.body.dataset.state = state;
}

/** For people who do not see the page. */
function say(text) {
  $('status').textContent = text;
}

function sizeOf(bytes) {
  const units = ['bytes', 'kB', 'MB', 'GB'];
  const at = Math.min(Math.floor(Math.log10(Math.max(bytes, 1)) / 3), units.length - 1);
  return `${(bytes / 1000 ** at).toFixed(at > 0 && bytes < 10 * 1000 ** at ? 1 : 0)} ${units[at]}`;
}

// --- a recording becomes text ---------------------------------------------------------------------------------------

function give(file, name = file.name) {
  given = { file, name };
  for (const element of document.querySelectorAll('.file-name')) element.textContent = name;
  for (const element of document.querySelectorAll('.file-size')) element.textContent = sizeOf(file.size);
  URL.revokeObjectURL(audioAddress);
  audioAddress = URL.createObjectURL(file);
  $('audio').src = audioAddress;
  run();
}

async function run() {
  result.begin(given.name);
  if (given.file.size > maxUploadBytes) {
    fail('This recording is too large.', `The server takes up to ${sizeOf(maxUploadBytes)}.`);
    return;
  }
  const { model, language, task } = Object.fromEntries(new FormData(options));
  let waiting = 0;
  let spoken = 0;
  show('working');
  step('Sending', 0);
  say(`Sending ${given.name}`);
  job = transcribe(
    { ...given, model: model || board.models[0]?.name || 'whisper-1', language, task },
    {
      upload: (fraction) => step(`Sending, ${Math.floor(fraction * 100)} %`, fraction),
      uploaded: () => {
        const explain = () => step(board.explain(model), null);
        explain();
        waiting = setInterval(explain, 250);
        say('Sent. Waiting for the text.');
      },
      segment: (segment) => {
        clearInterval(waiting);
        result.add(segment);
        spoken = segment.end ?? spoken;
        const whole = $('audio').duration;
        step('Writing', Number.isFinite(whole) && whole > 0 ? Math.min(1, spoken / whole) : null);
      },
    },
  );
  $('cancel').focus({ preventScroll: true });
  try {
    const transcript = await job.done;
    result.finish(transcript);
    show('done');
    const words = transcript.text.trim().split(/\s+/).filter(Boolean).length;
    say(words > 0 ? `Done: ${words} words.` : 'Done: nothing was said.');
    $('new').focus({ preventScroll: true });
  } catch (error) {
    result.stop();
    if (error instanceof Cancelled) {
      show('ready');
      say('Cancelled.');
      $('file').focus({ preventScroll: true });
    } else {
      refused(error);
    }
  } finally {
    clearInterval(waiting);
    job = null;
  }
}

/** `fraction` null: the length is unknown. */
function step(text, fraction) {
  if ($('step').textContent !== text) $('step').textContent = text;
  if (fraction === null) $('progress').removeAttribute('value');
  else $('progress').value = fraction;
}

function refused(error) {
  if (!(error instanceof Refused)) throw error;
  if (error.status === 401) askForKey();
  fail(error.message, remedy(error));
}

function remedy({ status, retryAfterSeconds }) {
  switch (status) {
    case 0:
      return 'Look whether the server is running and reachable, then try again.';
    case 400:
      return 'Any format that ffmpeg knows can be read, as long as the file is whole and has sound.';
    case 401:
      return 'Give the API key above, then try again.';
    case 413:
      return 'Cut it in pieces, or ask the operator for a larger limit (--max-upload).';
    case 429:
    case 503:
      return retryAfterSeconds ? `Try again in ${retryAfterSeconds} seconds.` : 'Try again in a moment.';
    default:
      return 'The log of the server says more.';
  }
}

function fail(problem, advice) {
  $('problem').textContent = problem[0].toUpperCase() + problem.slice(1);
  $('remedy').textContent = advice;
  $('retry').hidden = given === null;
  show('failed');
  say(`${problem} ${advice}`);
  ($('retry').hidden ? $('back') : $('retry')).focus({ preventScroll: true });
}

function startOver() {
  result.hide();
  $('file').value = '';
  given = null;
  show('ready');
  $('file').focus({ preventScroll: true });
}

$('cancel').addEventListener('click', () => job?.cancel());
$('again').addEventListener('click', run);
$('retry').addEventListener('click', run);
$('new').addEventListener('click', startOver);
$('back').addEventListener('click', startOver);

// --- a file ---------------------------------------------------------------------------------------------------------

$('file').addEventListener('change', () => {
  const [file] = $('file').files;
  if (file) give(file);
});

const holdsFile = (event) => event.dataTransfer?.types.includes('Files');
const free = () => ['ready', 'done', 'failed'].includes(stage.dataset.state);
let depth = 0;
addEventListener('dragenter', (event) => {
  if (holdsFile(event) && free()) document.body.classList.toggle('dragging', ++depth > 0);
});
addEventListener('dragleave', (event) => {
  if (holdsFile(event) && depth > 0) document.body.classList.toggle('dragging', --depth > 0);
});
addEventListener('dragover', (event) => {
  if (holdsFile(event)) event.preventDefault();
});
addEventListener('drop', (event) => {
  if (!holdsFile(event)) return;
  // Anywhere on the page: otherwise the browser leaves it for the file.
  event.preventDefault();
  depth = 0;
  document.body.classList.remove('dragging');
  const [file] = event.dataTransfer.files;
  if (file && free()) give(file);
});
addEventListener('paste', (event) => {
  const [file] = event.clipboardData?.files ?? [];
  if (file && free()) give(file);
});

// --- the microphone -------------------------------------------------------------------------------------------------

$('record').addEventListener('click', async () => {
  $('record').disabled = true;
  try {
    recorder = await Recorder.start();
    show('recording');
    say('Recording.');
    $('stop').focus({ preventScroll: true });
    draw();
  } catch (error) {
    if (!(error instanceof NoMicrophone)) throw error;
    given = null;
    fail(error.message, error.remedy);
  } finally {
    $('record').disabled = false;
  }
});

$('stop').addEventListener('click', async () => {
  const ended = recorder;
  recorder = null;
  if (ended) give(await ended.stop());
});

$('discard').addEventListener('click', () => {
  recorder?.discard();
  recorder = null;
  show('ready');
  say('Discarded.');
  $('record').focus({ preventScroll: true });
});

/** The level of the last seconds, newest at the right. */
function draw() {
  const canvas = $('level');
  const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
  const levels = [];
  let drawn = 0;
  const frame = (now) => {
    if (!recorder) return;
    const clock = shortClock(recorder.seconds);
    if ($('clock').textContent !== clock) $('clock').textContent = clock;
    if (now - drawn > (still ? 500 : 60)) {
      drawn = now;
      levels.push(recorder.level());
      paint(canvas, levels);
    }
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

function paint(canvas, levels) {
  const scale = devicePixelRatio;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const pen = canvas.getContext('2d');
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.fillStyle = getComputedStyle(canvas).color;
  const [bar, gap] = [4, 4];
  const count = Math.floor(width / (bar + gap));
  levels.splice(0, levels.length - count);
  levels.forEach((level, at) => {
    const tall = Math.max(bar, level * height);
    pen.beginPath();
    pen.roundRect(width - (levels.length - at) * (bar + gap), (height - tall) / 2, bar, tall, bar / 2);
    pen.fill();
  });
}

// --- options --------------------------------------------------------------------------------------------------------

const CHOICES = 'hush-options';

function restoreChoices() {
  const saved = JSON.parse(localStorage.getItem(CHOICES) ?? '{}');
  for (const name of ['language', 'task']) if (saved[name]) options.elements[name].value = saved[name];
  options.elements.times.checked = saved.times === true;
  document.body.classList.toggle('times', options.elements.times.checked);
}

options.addEventListener('change', () => {
  const { language, task, times } = options.elements;
  document.body.classList.toggle('times', times.checked);
  localStorage.setItem(CHOICES, JSON.stringify({ language: language.value, task: task.value, times: times.checked }));
});
options.addEventListener('submit', (event) => event.preventDefault());

function offerModels(models) {
  const select = $('model');
  const names = models.map(({ name }) => name);
  if (names.join() !== [...select.options].map(({ value }) => value).join()) {
    select.replaceChildren(...names.map((name) => new Option(name, name)));
  }
  $('model-option').hidden = names.length < 2;
}

// --- the server -----------------------------------------------------------------------------------------------------

function askForKey() {
  if (hasKey()) $('key-hint').textContent = 'The server does not know this key. Look whether it is whole.';
  $('key-form').hidden = false;
}

let watching = null;

function watch() {
  watching?.abort();
  watching = new AbortController();
  watchModels(
    {
      models: ({ models, max_upload_bytes: limit }) => {
        maxUploadBytes = limit;
        $('offline').hidden = true;
        $('key-form').hidden = true;
        board.show(models);
        offerModels(models);
      },
      lost: (status) => {
        board.lost();
        if (status === 401) {
          askForKey();
          watching.abort();
          return;
        }
        $('offline').textContent = navigator.onLine
          ? 'The server does not answer. Trying again…'
          : 'This device is offline. The page goes on when it is back.';
        $('offline').hidden = false;
      },
    },
    watching.signal,
  );
}

$('key-form').addEventListener('submit', (event) => {
  event.preventDefault();
  useKey($('key').value);
  $('key').value = '';
  watch();
  if (given && stage.dataset.state === 'failed') run();
});

addEventListener('online', watch);
restoreChoices();
show('ready');
watch();
