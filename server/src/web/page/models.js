// What the models are doing, in words, with a clock that runs between two events.

import { shortClock } from './formats.js';

const STATES = {
  unloaded: ['asleep', 'not in memory; the next recording wakes it'],
  loading: ['waking up', 'loading into memory'],
  ready: ['awake', 'in memory'],
  draining: ['finishing', 'finishes what it has, then leaves'],
  unloading: ['leaving', 'gives its memory back'],
  waiting_for_memory: ['waiting for memory', 'the device has no room for it now'],
  failed: ['cannot load', 'loading failed; it is tried again'],
};

export class ModelBoard {
  #root;
  #now;
  #list;
  #models = [];
  #seenAt = 0;
  #timer = 0;

  constructor(root) {
    this.#root = root;
    this.#now = root.querySelector('#models-now');
    this.#list = root.querySelector('#models-list');
    document.addEventListener('click', (event) => {
      if (!root.contains(event.target)) root.open = false;
    });
    root.addEventListener('keydown', (event) => {
      if (event.key !== 'Escape' || !root.open) return;
      root.open = false;
      root.querySelector('summary').focus();
    });
  }

  get models() {
    return this.#models;
  }

  show(models) {
    this.#models = models;
    this.#seenAt = performance.now();
    this.#list.replaceChildren(...models.map(() => row()));
    this.#draw();
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.#draw(), 500);
  }

  lost() {
    clearInterval(this.#timer);
    this.#models = [];
    this.#root.dataset.state = 'lost';
    this.#now.textContent = 'not connected';
    this.#list.replaceChildren();
  }

  /** Of the model named `name`, or the default: what a person who waits for it should know. */
  explain(name) {
    const model = this.#find(name);
    if (!model) return 'Waiting for the server';
    if (model.state === 'ready' && model.queued_requests > 0) return 'Waiting for its turn';
    if (model.state === 'ready') return 'Listening';
    if (model.state === 'waiting_for_memory') return 'Waiting for room in memory';
    if (model.state === 'failed') return 'The model could not be loaded; it is tried again';
    return 'Waking the model';
  }

  #find(name) {
    return this.#models.find((model) => model.name === name) ?? this.#models[0];
  }

  #draw() {
    const passed = (performance.now() - this.#seenAt) / 1000;
    // The one that is most awake speaks for all of them.
    const first = this.#models.find((model) => model.state !== 'unloaded') ?? this.#models[0];
    this.#root.dataset.state = first ? tone(first) : 'lost';
    const several = this.#models.length > 1;
    const text = first ? `${several ? `${first.name} ` : ''}${words(first, passed)}` : 'no model';
    if (this.#now.textContent !== text) this.#now.textContent = text;
    this.#models.forEach((model, at) => {
      const [name, state, detail, bar] = this.#list.children[at].querySelectorAll('[data-part]');
      name.textContent = model.name;
      state.textContent = words(model, passed);
      detail.textContent = details(model);
      const left = remaining(model, passed);
      bar.hidden = left === null;
      if (left !== null) bar.value = left / model.idle_timeout_seconds;
    });
  }
}

function row() {
  const item = document.createElement('li');
  for (const [tag, part] of [['strong', 'name'], ['span', 'state'], ['small', 'detail'], ['progress', 'left']]) {
    const element = document.createElement(tag);
    element.dataset.part = part;
    if (tag === 'progress') {
      element.max = 1;
      element.setAttribute('aria-label', 'Time until it leaves');
    }
    item.append(element);
  }
  return item;
}

const busy = (model) => model.state === 'ready' && model.inflight_requests > 0;

function tone(model) {
  return busy(model) ? 'busy' : model.state;
}

/** Seconds until the model leaves by itself; null when it does not, or not now. */
function remaining(model, passed) {
  if (model.state !== 'ready' || busy(model) || !model.idle_timeout_seconds) return null;
  return Math.max(0, model.idle_timeout_seconds - model.idle_seconds - passed);
}

function words(model, passed) {
  if (busy(model)) return model.queued_requests > 0 ? `working, ${model.queued_requests} waiting` : 'working';
  const left = remaining(model, passed);
  // Rounded up: it is gone at 0:00.
  if (left !== null) return `awake, leaves in ${shortClock(Math.ceil(left))}`;
  return STATES[model.state]?.[0] ?? model.state;
}

function details(model) {
  const about = STATES[model.state]?.[1] ?? '';
  const stays = model.residency === 'resident' || (model.residency === 'idle' && model.idle_timeout_seconds === null);
  return stays && model.state === 'ready' ? `${about}; it stays` : about;
}
