// The texts for figures, states and reasons.

export function bytes(count) {
  if (count === null || count === undefined) return 'unknown';
  if (count >= 2 ** 30) return `${(count / 2 ** 30).toFixed(count < 10 * 2 ** 30 ? 2 : 1)} GiB`;
  return `${Math.round(count / 2 ** 20)} MiB`;
}

/** Seconds as 0:07, 12:30, 1:02:03. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const pad = (number) => String(number).padStart(2, '0');
  return h > 0 ? `${h}:${pad(m)}:${pad(s)}` : `${m}:${pad(s)}`;
}

/** A duration as policies write it. */
export function span(ms) {
  const parts = [['h', 3_600_000], ['m', 60_000], ['s', 1000], ['ms', 1]];
  let rest = ms;
  let text = '';
  for (const [unit, size] of parts) {
    if (rest >= size) text += `${Math.floor(rest / size)}${unit}`;
    rest %= size;
  }
  return text || '0s';
}

export const STATES = {
  Unloaded: 'asleep',
  Loading: 'loading',
  Ready: 'in memory',
  Draining: 'finishing',
  Unloading: 'leaving',
  WaitingForMemory: 'waiting for memory',
  Failed: 'cannot load',
};

/** Why a model is left alone. */
export const WHY = {
  NotGoverned: 'No policy selects it; its server’s own rules hold',
  MetricsStale: 'Its figures are too old to act on',
  Transition: 'It is on its way already',
  BackOff: 'Commands to its server failed lately',
  NotLoaded: 'No request needs it',
  Busy: 'It is working',
  NotIdle: 'Not idle for long enough',
  Resident: 'Its policy keeps it in memory',
  MinResident: 'It was loaded a short while ago',
  MinLoaded: 'So many models must stay',
  GracePeriod: 'Memory is short, but not for long enough',
  AwaitingFreshSample: 'Waiting for newer figures',
  NotNeeded: 'There is enough memory without it',
  ForeignPressure: 'Others hold the memory; it would not help',
  RoomComing: 'Room for it is on its way',
  CannotMakeRoom: 'No model of lower priority can make room',
  NoRoom: 'There is no room for it now',
  DryRun: 'A dry-run policy would keep it',
};

/** Why something was decided. */
export const REASONS = {
  OverBudget: 'over its budget',
  IdleTimeout: 'idle for long enough',
  OnDemand: 'no request needs it',
  HardPressure: 'memory is very short',
  SoftPressure: 'memory is short',
  MakeRoom: 'room for another model',
  WarmWindow: 'a warm window is open',
  PreWarm: 'a request is expected',
  Manual: 'a person asked for it',
};

export const PRESSURE = {
  None: 'no pressure',
  Soft: 'soft pressure',
  Hard: 'hard pressure',
  Unknown: 'pressure unknown',
};

export const GPU_REASONS = {
  MetricsStale: 'its figures are too old',
  ForeignPressure: 'others hold the memory',
  AwaitingFreshSample: 'waiting for newer figures',
  GracePeriod: 'in its grace period',
  Reclaiming: 'taking memory back',
  TransitionPeriod: 'settling',
};

/** What became of the process that a command was to end. */
function processOf({ unload, process }) {
  if (unload !== 'Process' || process === undefined) return '';
  if (process === 'ended') return ', its process has ended';
  return process === 'kept_for_others' ? ', its process stays for its other models' : ', its process could not be ended';
}

/** The outcome of a command. */
export function outcome(record) {
  switch (record.outcome) {
    case 'Unloaded': {
      const back = record.reclaimedBytes === undefined ? 'memory not measured' : `${bytes(record.reclaimedBytes)} came back`;
      const left = record.residualBytes > 0 ? `, ${bytes(record.residualBytes)} did not` : '';
      return `${back}${left}${processOf(record)}`;
    }
    case 'Loading':
      return 'accepted, loading';
    case 'Refused':
      return `the server refused: ${record.message}`;
    case 'Withheld':
      return `not carried out: ${record.message}`;
    default:
      return `failed: ${record.message}`;
  }
}
