// The microphone.

/** What a browser can record and the server can read, best first. */
const TYPES = ['audio/webm;codecs=opus', 'audio/ogg;codecs=opus', 'audio/mp4'];
const EXTENSIONS = { 'audio/webm': 'webm', 'audio/ogg': 'ogg', 'audio/mp4': 'm4a' };

export class NoMicrophone extends Error {
  constructor(message, remedy) {
    super(message);
    this.remedy = remedy;
  }
}

/** Why there is no microphone, and what to do about it. */
function explain(error) {
  switch (error.name) {
    case 'NotAllowedError':
    case 'SecurityError':
      return new NoMicrophone(
        'The microphone is blocked for this page.',
        'Allow it with the icon beside the address, then press Record again. A file works without it.',
      );
    case 'NotFoundError':
    case 'OverconstrainedError':
      return new NoMicrophone('There is no microphone.', 'Connect one and press Record again, or choose a file.');
    case 'NotReadableError':
    case 'AbortError':
      return new NoMicrophone(
        'The microphone does not answer.',
        'Another program may be using it. Close that and press Record again, or choose a file.',
      );
    default:
      return new NoMicrophone(`The microphone could not be used: ${error.message}`, 'A file works without it.');
  }
}

export class Recorder {
  #stream;
  #recorder;
  #context;
  #analyser;
  #samples;
  #chunks = [];
  #startedAt = performance.now();

  /** Asks the person, then records. Throws [`NoMicrophone`]. */
  static async start() {
    if (!window.isSecureContext) {
      throw new NoMicrophone(
        'Browsers give the microphone only to pages that come over HTTPS.',
        'Open this page through HTTPS, or on the machine itself as localhost. A file works without it.',
      );
    }
    if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) {
      throw new NoMicrophone('This browser cannot record.', 'A file works all the same.');
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      return new Recorder(stream);
    } catch (error) {
      stream?.getTracks().forEach((track) => track.stop());
      throw explain(error);
    }
  }

  constructor(stream) {
    const mimeType = TYPES.find((type) => MediaRecorder.isTypeSupported(type));
    this.#stream = stream;
    this.#recorder = new MediaRecorder(stream, mimeType ? { mimeType } : {});
    this.#recorder.ondataavailable = (event) => this.#chunks.push(event.data);
    this.#context = new AudioContext();
    this.#analyser = this.#context.createAnalyser();
    this.#analyser.fftSize = 1024;
    this.#samples = new Float32Array(this.#analyser.fftSize);
    this.#context.createMediaStreamSource(stream).connect(this.#analyser);
    // In pieces, so that a recording of hours is not one growing buffer.
    this.#recorder.start(1000);
  }

  get seconds() {
    return (performance.now() - this.#startedAt) / 1000;
  }

  /** How loud it is, from 0 to 1. */
  level() {
    this.#analyser.getFloatTimeDomainData(this.#samples);
    const power = this.#samples.reduce((sum, sample) => sum + sample * sample, 0) / this.#samples.length;
    // -60 dB is silence, -6 dB is full.
    return Math.min(1, Math.max(0, (10 * Math.log10(power + 1e-9) + 60) / 54));
  }

  /** Ends it; a `File`. */
  async stop() {
    await new Promise((resolve) => {
      this.#recorder.onstop = resolve;
      this.#recorder.stop();
    });
    this.#release();
    const type = this.#recorder.mimeType;
    const extension = EXTENSIONS[type.split(';')[0]] ?? 'webm';
    const when = new Date().toISOString().slice(0, 19).replaceAll(':', '-').replace('T', ' ');
    return new File(this.#chunks, `Recording ${when}.${extension}`, { type });
  }

  discard() {
    this.#recorder.onstop = null;
    if (this.#recorder.state !== 'inactive') this.#recorder.stop();
    this.#release();
  }

  #release() {
    this.#stream.getTracks().forEach((track) => track.stop());
    this.#context.close();
  }
}
