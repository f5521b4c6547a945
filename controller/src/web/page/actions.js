// The actions of the page: unload, load, pause, resume. Each asks for a confirmation first.

import { Refused, hasToken, load, pause, resume, unload, useToken } from './api.js';
import { $ } from './dom.js';
import { bytes } from './words.js';

const AWAY = [['0', 'it may come back at once'], ['600', '10 minutes'], ['3600', '1 hour']];
const PAUSES = [['30m', '30 minutes'], ['2h', '2 hours'], ['', 'until it is resumed']];
/** Requests in flight may go on for this long; those that have not ended then begin again after the next load. */
const DRAIN_SECONDS = 30;

/** `changed()` is called when a token is given or forgotten; `announce(text)` gives a text to screen readers. */
export class Actions {
  #changed;
  #announce;
  #run = null;

  constructor(changed, announce) {
    this.#changed = changed;
    this.#announce = announce;
    $('token-form').addEventListener('submit', (event) => {
      event.preventDefault();
      useToken($('token').value);
      $('token').value = '';
      this.#changed();
      $('forget').focus();
    });
    $('forget').addEventListener('click', () => {
      useToken('');
      this.#changed();
      $('token').focus();
    });
    $('dialog-do').addEventListener('click', () => this.#go());
  }

  /** `offered`: the controller has a token to compare with. */
  show(offered) {
    $('acting').hidden = !offered;
    $('token-form').hidden = hasToken();
    $('token-known').hidden = !hasToken();
    return offered && hasToken();
  }

  model(kind, model) {
    const of = `${model.model} of ${model.server}`;
    const condition = { ifGeneration: model.generation };
    if (kind === 'load') {
      this.#ask(`Load ${of}?`, 'A policy may unload it again.', null, [], 'Load', () => load(model, condition));
      return;
    }
    const text = `It holds ${bytes(model.vramBytes)}. What is in flight may end first, for up to ${DRAIN_SECONDS} s.`;
    this.#ask(`Unload ${of}?`, text, 'Keep it away for', AWAY, 'Unload', (away) =>
      unload(model, { ...condition, drainSeconds: DRAIN_SECONDS, holdSeconds: Number(away) }));
  }

  policy({ name, paused }) {
    if (paused) {
      this.#ask(`Resume ${name}?`, 'From now on it is carried out again.', null, [], 'Resume', () => resume(name));
      return;
    }
    this.#ask(`Pause ${name}?`, 'Meanwhile it only shows what it would do.', 'For', PAUSES, 'Pause', (time) => pause(name, time));
  }

  #ask(title, text, label, choices, verb, run) {
    $('dialog-title').textContent = title;
    $('dialog-text').textContent = text;
    $('dialog-label').textContent = label ?? '';
    $('dialog-label').parentElement.hidden = label === null;
    $('dialog-choice').replaceChildren(...choices.map(([value, name]) => new Option(name, value)));
    $('dialog-do').textContent = verb;
    $('dialog-do').disabled = false;
    $('dialog-problem').textContent = '';
    this.#run = { verb, run };
    $('dialog').showModal();
    $('dialog-do').focus();
  }

  async #go() {
    const { verb, run } = this.#run;
    $('dialog-do').disabled = true;
    $('dialog-problem').textContent = '';
    try {
      await run($('dialog-choice').value);
      $('dialog').close();
      this.#announce(`${verb}: done.`);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      $('dialog-problem').textContent = error.message;
      if (error.status === 401) {
        useToken('');
        this.#changed();
      }
    } finally {
      $('dialog-do').disabled = false;
    }
  }
}
