// The models: their state, how long they stay, which policies select them and why they are left alone.

import { keep, make, write } from './dom.js';
import { STATES, WHY, bytes, clock, span } from './words.js';

/** `now()` returns the controller's time in milliseconds; `act(kind, model)` is called for the buttons of a model. */
export class ModelList {
  #root;
  #now;
  #act;
  #models = [];

  constructor(root, now, act) {
    this.#root = root;
    this.#now = now;
    this.#act = act;
    setInterval(() => this.tick(), 500);
  }

  show(models, mayAct, decisions) {
    this.#models = models.map((model) => ({
      ...model,
      mayAct,
      decision: decisions.find((d) => d.server === model.server && d.model === model.model),
    }));
    keep(this.#root, this.#models, key, (model) => this.#create(model), (element, model) => this.#update(element, model));
    this.tick();
  }

  #create(model) {
    const button = (kind, text) =>
      make('button', { type: 'button', 'data-do': kind, 'aria-label': `${text} ${model.model} of ${model.server}`,
        onclick: () => this.#act(kind, this.#models.find((other) => key(other) === key(model))) }, text);
    return make('article', { class: 'card model', 'aria-label': `Model ${model.model} of ${model.server}` },
      make('div', { class: 'model-head' },
        make('div', {}, make('h3', {}, model.model), make('p', { class: 'hint' }, model.server), make('p', { class: 'hint', 'data-part': 'app' })),
        make('p', { class: 'state' }, make('span', { class: 'dot', 'aria-hidden': 'true' }), make('span', { 'data-part': 'state' }))),
      make('progress', { max: 1, 'data-part': 'left', 'aria-label': 'Time until it leaves' }),
      make('p', { 'data-part': 'clock', class: 'clock' }),
      make('ul', { 'data-part': 'why', class: 'why' }),
      make('p', { 'data-part': 'rules', class: 'hint' }),
      make('div', { class: 'row actions' }, button('unload', 'Unload'), button('load', 'Load')));
  }

  #update(element, model) {
    const part = (name) => element.querySelector(`[data-part=${name}]`);
    element.dataset.state = tone(model);
    write(part('app'), model.app);
    write(part('state'), stateOf(model));
    write(part('rules'), rulesOf(model));
    keep(part('why'), reasons(model), ({ reason }) => reason, () => make('li'), (item, { text }) => write(item, text));
    const inMemory = model.state === 'Ready' || model.state === 'Loading';
    element.querySelector('.actions').hidden = !model.mayAct;
    element.querySelector('[data-do=unload]').hidden = !inMemory;
    element.querySelector('[data-do=load]').hidden = model.state !== 'Unloaded' && model.state !== 'Failed';
  }

  /** Updates what changes with time alone. */
  tick() {
    const now = this.#now();
    for (const model of this.#models) {
      const element = this.#root.querySelector(`[data-key="${CSS.escape(key(model))}"]`);
      if (!element) continue;
      const left = element.querySelector('[data-part=left]');
      const part = remaining(model, now);
      left.hidden = part === null;
      if (part !== null) left.value = part.share;
      write(element.querySelector('[data-part=clock]'), clockOf(model, now, part));
    }
  }
}

/** The details of these reasons count time, which the clock shows already, or repeat the reason. */
const WITHOUT_DETAIL = ['NotIdle', 'MinResident', 'GracePeriod', 'NotGoverned', 'NotLoaded', 'MetricsStale'];

const key = ({ server, model }) => `${server} ${model}`;
const busy = (model) => model.state === 'Ready' && model.inflight + model.queued > 0;

function tone(model) {
  if (!model.fresh) return 'stale';
  return busy(model) ? 'busy' : model.state;
}

function stateOf(model) {
  const held = model.vramBytes > 0 ? `, ${bytes(model.vramBytes)}` : '';
  const stale = model.fresh ? '' : ' (old figures)';
  if (!busy(model)) return `${STATES[model.state] ?? model.state}${held}${stale}`;
  const waiting = model.queued > 0 ? `, ${model.queued} waiting` : '';
  return `working on ${model.inflight}${waiting}${held}${stale}`;
}

function remaining(model, now) {
  if (!model.fresh || model.leavesAt === null || model.idleTimeoutMs === null) return null;
  const seconds = (Date.parse(model.leavesAt) - now) / 1000;
  const whole = Math.max(model.idleTimeoutMs.value / 1000, seconds, 0.001);
  return { seconds, share: Math.min(1, Math.max(0, seconds / whole)) };
}

function clockOf(model, now, left) {
  const demand = model.demandBytes ? `needs ${bytes(model.demandBytes)}` : '';
  const held = model.heldUntil ? (Date.parse(model.heldUntil) - now) / 1000 : 0;
  if (held > 0) return `held, may be loaded in ${clock(Math.ceil(held))}`;
  if (model.idleSince === null) return demand;
  const idle = `idle ${clock((now - Date.parse(model.idleSince)) / 1000)}`;
  if (left === null) return idle;
  if (left.seconds <= 0) return `${idle}, leaves now`;
  // Rounded up, so that the model leaves at 0:00.
  return `${idle}, leaves in ${clock(Math.ceil(left.seconds))}`;
}

function reasons(model) {
  if (model.decision) {
    const { action, reason, policy, dryRun, unload } = model.decision;
    const by = policy ? ` by ${policy}` : '';
    return [{ reason: 'decision', text: `${dryRun ? 'Would be told' : 'Told'} to ${action.toLowerCase()}${unload === 'Process' ? ' with its process' : ''}${by} (${reason})` }];
  }
  return model.why.map(({ reason, detail }) => {
    const plain = !detail || WITHOUT_DETAIL.includes(reason);
    return { reason, text: `${WHY[reason] ?? reason}${plain ? '' : `: ${detail}`}` };
  });
}

function rulesOf(model) {
  if (model.rules === null) return 'No policy governs it.';
  const { policies, residency, window: open, priority, unload } = model.rules;
  const mode = `${residency.value}${open ? `, warm window of ${open}` : ''}`;
  const timeout = model.idleTimeoutMs ? `, idle timeout ${span(model.idleTimeoutMs.value)} by ${model.idleTimeoutMs.policy}` : '';
  const rank = priority.value !== 0 ? `, priority ${priority.value}` : '';
  const stays = model.processStays ? ', which its sidecar cannot do' : '';
  // Controllers of an earlier release do not report it.
  const ends = unload?.value === 'Process' ? `, an unload ends the process by ${unload.policy}${stays}` : '';
  return `Governed by ${policies.join(', ')}: ${mode}${timeout}${rank}${ends}.`;
}
