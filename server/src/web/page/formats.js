// Transcripts as files: the same bytes that the server writes for the same segments.

const pad = (number, width = 2) => String(number).padStart(width, '0');

/** Python's rounding, halves to even: the server prints times as Python does. */
function milliseconds(seconds) {
  const exact = seconds * 1000;
  const floor = Math.floor(exact);
  if (exact - floor !== 0.5) return Math.round(exact);
  return floor % 2 === 0 ? floor : floor + 1;
}

function clock(seconds, { point, hours }) {
  const all = milliseconds(seconds);
  const [h, m, s, ms] = [Math.floor(all / 3_600_000), Math.floor(all / 60_000) % 60, Math.floor(all / 1000) % 60, all % 1000];
  const head = h > 0 || hours ? `${pad(h)}:` : '';
  return `${head}${pad(m)}:${pad(s)}${point}${pad(ms, 3)}`;
}

/** For people: 0:07, 12:30, 1:02:03. */
export function shortClock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h > 0 ? `${h}:${pad(m)}:${pad(s)}` : `${m}:${pad(s)}`;
}

const cue = (text) => text.trim().replaceAll('-->', '->');

export const FORMATS = {
  txt: {
    type: 'text/plain',
    write: ({ text, segments }) =>
      segments.length > 0 ? segments.map((segment) => `${segment.text.trim()}\n`).join('') : `${text.trim()}\n`,
  },
  srt: {
    type: 'application/x-subrip',
    timed: true,
    write: ({ segments }) =>
      segments
        .map(({ start, end, text }, at) => {
          const [from, to] = [start, end].map((time) => clock(time, { point: ',', hours: true }));
          return `${at + 1}\n${from} --> ${to}\n${cue(text)}\n\n`;
        })
        .join(''),
  },
  vtt: {
    type: 'text/vtt',
    timed: true,
    write: ({ segments }) => {
      const cues = segments.map(({ start, end, text }) => {
        const [from, to] = [start, end].map((time) => clock(time, { point: '.', hours: false }));
        return `${from} --> ${to}\n${cue(text)}\n\n`;
      });
      return `WEBVTT\n\n${cues.join('')}`;
    },
  },
  json: {
    type: 'application/json',
    write: ({ text, segments, language, duration }) => {
      const plain = segments.map(({ start, end, text: words }) => ({ start, end, text: words }));
      return `${JSON.stringify({ language, duration, text, segments: plain }, null, 2)}\n`;
    },
  },
};
