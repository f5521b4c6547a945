// What the page asks of the server. Addresses are relative: the page may live below a path of a proxy.

import { EventReader } from './events.js';

const KEY = 'hush-key';
/** Gone with the tab. */
let key = sessionStorage.getItem(KEY) ?? '';

export const hasKey = () => key !== '';

export function useKey(given) {
  key = given.trim();
  sessionStorage.setItem(KEY, key);
}

export const authorization = () => (key ? { Authorization: `Bearer ${key}` } : {});

/** The server said no, or nothing. `status` 0: it was not reached. */
export class Refused extends Error {
  constructor(status, message, retryAfterSeconds) {
    super(message);
    this.status = status;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

export class Cancelled extends Error {}

/**
 * Sends a recording and reads the transcript as it comes.
 *
 * XMLHttpRequest and not fetch: it alone tells how much of an upload has gone, and it reads a stream as well.
 * `on.upload(fraction)`, `on.uploaded()`, `on.segment({text, start, end})` with times in seconds.
 * Returns `{done, cancel}`; `done` gives `{text, segments, language, duration}`.
 */
export function transcribe({ file, name, model, language, task }, on) {
  const form = new FormData();
  form.append('model', model);
  form.append('stream', 'true');
  form.append('timestamp_granularities[]', 'segment');
  if (language) form.append('language', language);
  form.append('file', file, name);

  const request = new XMLHttpRequest();
  const segments = [];
  let end = null;
  let read = 0;
  const reader = new EventReader((_, data) => {
    if (data === '[DONE]') return;
    const event = JSON.parse(data);
    if (event.type === 'transcript.text.delta') {
      const segment = { text: event.delta, start: event.start, end: event.end };
      segments.push(segment);
      on.segment(segment);
    } else if (event.type === 'transcript.text.done' || event.error) {
      end = event;
    }
  });
  const feed = () => {
    if (request.status !== 200) return;
    reader.push(request.responseText.slice(read));
    read = request.responseText.length;
  };
  const done = new Promise((resolve, reject) => {
    request.upload.onprogress = (event) => event.lengthComputable && on.upload(event.loaded / event.total);
    request.upload.onload = () => on.uploaded();
    request.onprogress = feed;
    request.onload = () => {
      feed();
      if (request.status !== 200) reject(refusal(request));
      else if (!end) reject(new Refused(0, 'The transcript ended in the middle.'));
      else if (end.error) reject(new Refused(500, end.error.message));
      else resolve({ text: end.text, segments, language: end.language, duration: end.duration });
    };
    request.onerror = () => reject(new Refused(0, 'The connection to the server was lost.'));
    request.onabort = () => reject(new Cancelled());
    request.open('POST', task === 'translate' ? 'v1/audio/translations' : 'v1/audio/transcriptions');
    for (const [header, value] of Object.entries(authorization())) request.setRequestHeader(header, value);
    request.send(form);
  });
  return { done, cancel: () => request.abort() };
}

/** The reason in the words of the server, whichever shape it has. */
function refusal(request) {
  let message = '';
  try {
    const body = JSON.parse(request.responseText);
    message = body.error?.message ?? body.detail?.[0]?.msg ?? body.detail ?? '';
  } catch {
    message = request.responseText.slice(0, 300);
  }
  const wait = Number(request.getResponseHeader('retry-after')) || null;
  return new Refused(request.status, String(message) || `The server answered ${request.status}.`, wait);
}

/** Follows the models until `signal` ends it; comes back after each loss. `on.models(view)`, `on.lost(status)`. */
export async function watchModels(on, signal) {
  let pause = 1000;
  while (!signal.aborted) {
    let status = 0;
    try {
      const response = await fetch('v1/hush/events', { headers: authorization(), signal, cache: 'no-store' });
      status = response.status;
      if (response.ok) {
        const reader = new EventReader((name, data) => {
          if (name === 'models') on.models(JSON.parse(data));
        });
        pause = 1000;
        for await (const text of pieces(response.body)) reader.push(text);
      }
    } catch {
      // Not reached, or lost: it is tried again.
    }
    if (signal.aborted) return;
    on.lost(status);
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(2 * pause, 10_000);
  }
}

async function* pieces(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    yield value;
  }
}
