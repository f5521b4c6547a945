// The page: shows each state that the controller sends, and says so when none comes.

import { Actions } from './actions.js';
import { watch } from './api.js';
import { $, keep, make, write } from './dom.js';
import { showGpus } from './gpus.js';
import { ModelList } from './models.js';
import { showTimeline } from './timeline.js';
import { WhatIf } from './whatif.js';

let state = null;
/** The controller's clock minus this machine's monotonic one, in milliseconds. */
let offset = Date.now() - performance.now();
const now = () => performance.now() + offset;

const announce = (text) => write($('status'), text);
const actions = new Actions(() => state && show(state), announce);
const models = new ModelList($('models'), now, (kind, model) => actions.model(kind, model));
const whatIf = new WhatIf(() => state, announce);

function show(next) {
  state = next;
  const mayAct = actions.show(state.actions);
  // The state is empty before the controller's first step.
  const begun = Date.parse(state.at) > 0;
  const nothing = state.gpus.length === 0 && state.models.length === 0;
  $('empty').hidden = begun && !nothing;
  $('content').hidden = !begun;
  write($('empty'), empty(begun));
  connection(begun ? (state.acting ? 'live' : 'observing') : 'loading', begun ? (state.acting ? 'Live' : 'Live, observes only') : 'Starting');
  showGpus($('nodes'), state.gpus, state.servers);
  models.show(state.models, mayAct, state.decisions);
  write($('models-count'), count(state.models));
  showPolicies(mayAct);
  whatIf.allow(state.actions, mayAct);
  whatIf.offer(state.policies);
  showTimeline($('timeline'), state.records);
  $('timeline').hidden = state.records.length === 0;
  $('no-timeline').hidden = state.records.length > 0;
  showProblems();
  write($('version'), `Hush ${state.version}`);
}

function empty(begun) {
  if (!begun) return 'The controller has just started.';
  const { servers } = state;
  if (servers.length === 0) return 'No server is known. Name one with --target, or label its pod gpu.hush.dev/server: "true".';
  const failing = servers.filter(({ failure }) => failure);
  if (failing.length === 0) return 'The servers have not answered yet.';
  return 'No server answers; below is why.';
}

function count(all) {
  const loaded = all.filter((model) => model.state === 'Ready').length;
  return all.length === 0 ? 'none' : `${loaded} of ${all.length} in memory`;
}

function showPolicies(mayAct) {
  $('policies').hidden = state.policies.length === 0;
  $('no-policies').hidden = state.policies.length > 0;
  keep($('policies'), state.policies, ({ name }) => name, newPolicy, (element, policy) => {
    const { paused, dryRun, models: selects } = policy;
    const until = paused?.until ? ` until ${new Date(paused.until).toLocaleTimeString([], { hour12: false })}` : '';
    const by = paused?.claimedBy ? `, asked for by ${paused.claimedBy} as the request says` : '';
    const mode = paused ? `paused${until}${by}` : dryRun ? 'dry run' : 'in force';
    write(element.querySelector('[data-part=mode]'), `${mode}, ${selects} ${selects === 1 ? 'model' : 'models'}`);
    element.dataset.paused = Boolean(paused);
    const button = element.querySelector('[data-do=pause]');
    button.hidden = !mayAct;
    write(button, paused ? 'Resume' : 'Pause');
    button.setAttribute('aria-label', `${paused ? 'Resume' : 'Pause'} ${policy.name}`);
  });
}

function newPolicy({ name }) {
  const find = () => state.policies.find((policy) => policy.name === name);
  return make('li', {},
    make('div', {}, make('strong', {}, name), ' ', make('span', { class: 'hint', 'data-part': 'mode' })),
    make('div', { class: 'row' },
      make('button', { type: 'button', 'aria-label': `Edit a copy of ${name}`, onclick: () => whatIf.begin(name) }, 'What if?'),
      make('button', { type: 'button', 'data-do': 'pause', onclick: () => actions.policy(find()) }, 'Pause')));
}

function showProblems() {
  const failing = state.servers.filter(({ failure }) => failure).map(({ server, failure }) => `${server} cannot be observed: ${failure}`);
  const lines = [...failing, ...state.problems];
  $('problems').hidden = lines.length === 0;
  if (lines.join('\n') === $('problems').dataset.said) return;
  $('problems').dataset.said = lines.join('\n');
  $('problems').replaceChildren(...lines.map((line) => make('p', {}, line)));
}

function connection(kind, text) {
  document.body.dataset.state = kind;
  write($('connection'), text);
}

function trouble(text) {
  $('trouble').hidden = text === null;
  if (text !== null) write($('trouble'), text);
}

watch({
  state: (view) => {
    if (Date.parse(view.at) > 0) offset = Date.parse(view.at) - performance.now();
    trouble(null);
    show(view);
  },
  alive: (at, steppedAt) => {
    offset = Date.parse(at) - performance.now();
    const silent = Math.round((Date.parse(at) - Date.parse(steppedAt)) / 1000);
    if (!state) return;
    if (silent > state.staleAfterSeconds) {
      connection('stale', 'Old figures');
      trouble(`The controller has not looked at anything for ${silent} s. What is below may be wrong.`);
    } else if (document.body.dataset.state === 'stale') {
      trouble(null);
      show(state);
    }
  },
  lost: () => {
    connection('lost', 'Not connected');
    const seen = state ? ' What is below is as it was.' : '';
    trouble(navigator.onLine ? `The controller does not answer. Trying again…${seen}` : `This device is offline.${seen}`);
    if (!state) write($('empty'), 'Nothing is known yet.');
  },
});
