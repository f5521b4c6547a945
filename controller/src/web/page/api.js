// What the page asks of the controller. Addresses are relative: the page may live below a path of a proxy.

const TOKEN = 'hush-controller-token';
/** Gone with the tab. */
let token = sessionStorage.getItem(TOKEN) ?? '';

export const hasToken = () => token !== '';

export function useToken(given) {
  token = given.trim();
  if (token) sessionStorage.setItem(TOKEN, token);
  else sessionStorage.removeItem(TOKEN);
}

/** The controller said no, or nothing. `status` 0: it was not reached. */
export class Refused extends Error {
  constructor(status, code, message, problems = []) {
    super(message);
    Object.assign(this, { status, code, problems });
  }
}

async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, { cache: 'no-store', ...options });
  } catch {
    throw new Refused(0, 'unreachable', 'The controller does not answer.');
  }
  if (response.ok) return response;
  const text = await response.text();
  let body = {};
  try {
    body = JSON.parse(text);
  } catch {
    // Not from the controller itself.
  }
  throw new Refused(response.status, body.code ?? '', body.message ?? `The answer was ${response.status}.`, body.problems);
}

/** In the query: proxies on the way write an encoded slash of a path as a slash. */
const about = (names) => `?${new URLSearchParams(names)}`;

export const policyYaml = async (policy) => (await ask(`api/v1/policy${about({ policy })}`)).text();

/** With the token. Not as `Authorization`: behind `kubectl proxy` that is the API server's. */
async function post(address, type, body) {
  const headers = { 'X-Hush-Token': token, 'Content-Type': type };
  return (await ask(address, { method: 'POST', headers, body })).json();
}

const act = (address, body) => post(address, 'application/json', JSON.stringify(body));

export const whatIf = (yaml) => post('api/v1/plan', 'application/yaml', yaml);

export const unload = ({ server, model }, body) => act(`api/v1/unload${about({ server, model })}`, body);
export const load = ({ server, model }, body) => act(`api/v1/load${about({ server, model })}`, body);
export const pause = (policy, duration) => act(`api/v1/pause${about({ policy })}`, duration ? { duration } : { untilResumed: true });
export const resume = (policy) => act(`api/v1/resume${about({ policy })}`, {});

/** Nothing for so long, not even a heartbeat, is a lost connection. */
const SILENCE_MS = 15_000;

/** Follows the state; comes back after each loss. `on.state(view)`, `on.alive(at, steppedAt)`, `on.lost()`. */
export function watch(on) {
  let source;
  let silence;
  let pauseMs = 500;
  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(again, SILENCE_MS);
    pauseMs = 500;
  };
  const again = () => {
    clearTimeout(silence);
    source.close();
    on.lost();
    setTimeout(open, pauseMs);
    pauseMs = Math.min(2 * pauseMs, 8000);
  };
  const open = () => {
    source = new EventSource('api/v1/events');
    silence = setTimeout(again, SILENCE_MS);
    source.addEventListener('state', (event) => {
      heard();
      on.state(JSON.parse(event.data));
    });
    source.addEventListener('heartbeat', (event) => {
      heard();
      const { at, steppedAt } = JSON.parse(event.data);
      on.alive(at, steppedAt);
    });
    // Some losses EventSource mends by itself, others not: all are mended here.
    source.onerror = again;
  };
  open();
}
