// Shows what would be done with an edited policy.

import { Refused, policyYaml, whatIf } from './api.js';
import { $, make, write } from './dom.js';
import { showGpus } from './gpus.js';
import { PRESSURE, REASONS, WHY, bytes, span } from './words.js';

/** `state()` returns the current state; `announce(text)` gives a text to screen readers. */
export class WhatIf {
  #state;
  #announce;
  /** Why no plan can be requested now. */
  #missing = '';

  constructor(state, announce) {
    this.#state = state;
    this.#announce = announce;
    $('what-if').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#try();
    });
    $('pick').addEventListener('change', () => this.begin($('pick').value));
  }

  /** `offered`: the controller has a token to compare with; `may`: the user has entered one. */
  allow(offered, may) {
    this.#missing = may ? '' : offered
      ? 'It asks for the token: give it below, at “Acting”.'
      : 'It is off: start the controller with --page-token-file.';
    write($('what-if-hint'), this.#missing);
  }

  offer(policies) {
    const select = $('pick');
    const names = policies.map(({ name }) => name);
    if (names.join() === [...select.options].slice(1).map(({ value }) => value).join()) return;
    const chosen = select.value;
    select.replaceChildren(select.options[0], ...names.map((name) => new Option(name, name)));
    select.value = names.includes(chosen) ? chosen : '';
  }

  async begin(name) {
    if (!name) return;
    $('pick').value = name;
    try {
      $('yaml').value = await policyYaml(name);
      this.#problems([]);
      $('yaml').focus();
    } catch (error) {
      this.#refused(error);
    }
  }

  async #try() {
    if (this.#missing) {
      this.#problems([this.#missing]);
      return;
    }
    $('try').disabled = true;
    try {
      const answer = await whatIf($('yaml').value);
      this.#problems([]);
      this.#show(answer);
    } catch (error) {
      $('answer').hidden = true;
      this.#refused(error);
    } finally {
      $('try').disabled = false;
    }
  }

  #refused(error) {
    if (!(error instanceof Refused)) throw error;
    const lines = error.problems.map(({ line, message }) => (line ? `Line ${line}: ${message}` : message));
    this.#problems(lines.length > 0 ? lines : [error.message]);
    $('yaml').focus();
    const [first] = error.problems;
    if (first?.line) mark($('yaml'), first.line);
  }

  #problems(lines) {
    $('yaml').setAttribute('aria-invalid', String(lines.length > 0));
    $('what-if-problems').replaceChildren(...lines.map((line) => make('li', {}, line)));
  }

  #show({ policies, decisions, gpus, models }) {
    const now = this.#state();
    const edited = policies.map(({ name, is, models: count }) =>
      make('li', {}, `${name}: ${is === 'same' ? 'as it is in force' : is}, selects ${count} ${count === 1 ? 'model' : 'models'}`));
    const done = decisions.map((d) =>
      make('li', {}, make('strong', {}, `${d.dryRun ? 'Would only be shown: ' : ''}${d.action} ${d.model}`), ` of ${d.server}${d.unload === 'Process' ? ' with its process' : ''}, ${bytes(d.vramBytes)}: ${REASONS[d.reason] ?? d.reason}${d.policy ? `, by ${d.policy}` : ''}`));
    const changes = models.flatMap((model) => changed(now.models.find((m) => m.server === model.server && m.model === model.model), model));
    const pressed = gpus.filter(({ pressure }) => pressure !== 'None').map(({ uuid, pressure }) => make('li', {}, `${uuid}: ${PRESSURE[pressure] ?? pressure}`));
    const bars = make('div', {});
    showGpus(bars, gpus, []);
    $('answer-content').replaceChildren(
      make('ul', {}, ...edited),
      make('h4', {}, 'To be done now'),
      done.length > 0 ? make('ul', { id: 'answer-decisions' }, ...done) : make('p', { id: 'answer-decisions' }, 'Nothing.'),
      make('h4', {}, 'What changes for the models'),
      changes.length > 0 ? make('ul', { id: 'answer-changes' }, ...changes) : make('p', { id: 'answer-changes' }, 'Nothing.'),
      ...(pressed.length > 0 ? [make('h4', {}, 'GPUs under pressure'), make('ul', {}, ...pressed)] : []),
      bars);
    $('answer').hidden = false;
    $('answer').focus({ preventScroll: false });
    this.#announce(`What would happen: ${decisions.length} ${decisions.length === 1 ? 'command' : 'commands'} now.`);
  }
}

function changed(before, after) {
  const facts = [
    ['residency', (m) => m?.rules?.residency.value ?? 'its server’s own'],
    ['idle timeout', (m) => (m?.idleTimeoutMs ? span(m.idleTimeoutMs.value) : 'none')],
    ['priority', (m) => String(m?.rules?.priority.value ?? 0)],
    ['governed by', (m) => m?.rules?.policies.join(', ') ?? 'no policy'],
    ['left alone because', (m) => m?.why.map(({ reason }) => WHY[reason] ?? reason).join('; ') || 'it is not'],
  ];
  const lines = facts.map(([name, of]) => [name, of(before), of(after)]).filter(([, was, is]) => was !== is);
  if (lines.length === 0) return [];
  const texts = lines.map(([name, was, is]) => `${name}: ${was} → ${is}`);
  return [make('li', {}, make('strong', {}, after.model), ` of ${after.server}: ${texts.join('; ')}`)];
}

/** Selects a line of a text area, counted from 1. */
function mark(area, line) {
  const lines = area.value.split('\n');
  const from = lines.slice(0, line - 1).join('\n').length + (line > 1 ? 1 : 0);
  area.setSelectionRange(from, from + (lines[line - 1]?.length ?? 0));
}
