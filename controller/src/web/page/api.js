// The requests of the page to the controller. Their addresses are relative, because a proxy may serve the page below a path.

const TOKEN = 'hush-controller-token';
/** The token is forgotten when the tab is closed. */
let token = sessionStorage.getItem(TOKEN) ?? '';

export const hasToken = () => token !== '';

export function useToken(given) {
  token = given.trim();
  if (token) sessionStorage.setItem(TOKEN, token);
  else sessionStorage.removeItem(TOKEN);
}

/** A request that the controller refused, or that did not reach it: then `status` is 0. */
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
    // The response is no JSON, because a proxy wrote it.
  }
  throw new Refused(response.status, body.code ?? '', body.message ?? `The answer was ${response.status}.`, body.problems);
}

/** Names go into the query, because proxies on the way decode an encoded slash in a path. */
const about = (names) => `?${new URLSearchParams(names)}`;

export const policyYaml = async (policy) => (await ask(`api/v1/policy${about({ policy })}`)).text();

/** Sends the token in a header of its own, because behind `kubectl proxy` the API server takes `Authorization`. */
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

/** A connection without an event, not even a heartbeat, for this long is lost. */
const SILENCE_MS = 15_000;

/** Follows the state, and reconnects after each loss. Calls `on.state(view)`, `on.alive(at, steppedAt)`, `on.lost()`. */
export function watch(on) {
  let source;
  let silence;
  let pauseMs = 500;
  const resetTimeout = () => {
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
      resetTimeout();
      on.state(JSON.parse(event.data));
    });
    source.addEventListener('heartbeat', (event) => {
      resetTimeout();
      const { at, steppedAt } = JSON.parse(event.data);
      on.alive(at, steppedAt);
    });
    // EventSource reconnects after some errors and not after others, so that all reconnects are done here.
    source.onerror = again;
  };
  open();
}
