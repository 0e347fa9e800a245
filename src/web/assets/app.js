// The page: each file becomes a card, is sent with POST /v1/jobs, and is polled with GET /v1/jobs/{id} until its job ends.
// From top to bottom: adding files, the upload pool, the poll pool, the interpretation of answers (pure), drawing.
// Text from outside (file names, labels, error messages) is always inserted as text, never as markup.

// A browser opens six connections to one HTTP/1.1 server. Four are for uploads and two for long polls, so that neither
// can starve the other, however many files there are.
const MAX_UPLOADS = 4;
const MAX_POLLS = 2;
const MAX_UPLOAD_ATTEMPTS = 6;
const LONG_POLL_SECONDS = 20;
const SHORT_POLL_SECONDS = 1;
const POLL_GRACE_MS = 15_000; // added to the requested wait before a connection counts as lost
const GIVE_UP_AFTER_MS = 180_000; // time without a useful answer about a job
const UNKNOWN_AFTER_MS = 20_000; // time of answers with 404 for a job that was accepted
const MAX_RETRY_AFTER_MS = 60_000;
const SHOWN_PREDICTIONS = 5;
const SHOWN_LABELS = 12;
const THUMBNAIL_PIXELS = 240;
const KEY_ITEM = 'imgcls-key'; // in the session storage: the key ends with the tab

const STATE_TEXT = {
  waiting: 'Waiting to upload',
  uploading: 'Uploading',
  queued: 'In the queue',
  succeeded: 'Done',
  failed: 'Failed',
};

/** The members of timings_ms, in the order in which they happen. */
const STAGES = ['queued', 'fetched', 'decoded', 'inferred', 'total'];

/** Error codes that the same file would get again. */
const FINAL_CODES = ['undecodable', 'unsupported_type', 'too_many_pixels', 'decode_timeout', 'too_large_decoded', 'input_too_large',
  'malformed'];

const byId = (id) => document.getElementById(id);
const page = {
  root: document.documentElement,
  drop: byId('drop'),
  files: byId('files'),
  model: byId('model'),
  modelChoice: byId('model-choice'),
  toolbar: byId('toolbar'),
  summary: byId('summary'),
  retryFailed: byId('retry-failed'),
  clear: byId('clear'),
  cards: byId('cards'),
  announcer: byId('announcer'),
  signIn: byId('sign-in'),
  key: byId('key'),
  signInProblem: byId('sign-in-problem'),
};

/** All jobs with a card, in the order in which they were added. */
let jobs = [];
/** Jobs that wait for an upload slot, oldest first. */
let waiting = [];
/** Accepted jobs that have not ended, oldest first. */
let pending = [];
let uploads = 0;
let polls = 0;
let pollTimer = 0;
/** The key that is sent with every request; empty until the service asks for one. */
let key = storedKey();
/** Requests that wait until a key is entered. */
let keyless = [];

start();

function start() {
  byId('origin').textContent = location.origin;
  byId('terminal').hidden = false;
  page.drop.hidden = false;

  page.files.addEventListener('change', () => {
    const files = [...page.files.files];
    page.files.value = ''; // so that the same file can be chosen again
    addFiles(files);
  });
  document.addEventListener('paste', (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length === 0) return;
    event.preventDefault();
    addFiles(files);
  });
  page.signIn.addEventListener('submit', signIn);
  listenForDrops();
  offerModels();

  page.clear.addEventListener('click', clearAll);
  page.retryFailed.addEventListener('click', () => {
    jobs.filter((job) => job.retry).forEach(retry);
    page.files.focus({ preventScroll: true }); // the button disappears; the scroll position stays
  });
  window.addEventListener('online', () => {
    for (const job of pending) job.dueAt = 0;
    pumpPolls();
  });
}

/** Offers the models of the service if there are several. Without an answer, the service uses its first one. */
async function offerModels() {
  const { body } = await request('/v1/models', { headers: { Accept: 'application/json' } });
  const models = (Array.isArray(body?.models) ? body.models : []).filter((model) => textOf(model?.name));
  if (models.length < 2) return;
  for (const { name, default: isDefault } of models) {
    const option = el('option', '', name, { value: name });
    option.selected = isDefault === true;
    page.model.append(option);
  }
  page.modelChoice.hidden = false;
}

// ------------------------------------------------------------------------------------------- adding files

function listenForDrops() {
  let depth = 0; // dragenter and dragleave also fire for every child
  const dragging = (on) => page.root.classList.toggle('dragging', on);
  const carriesFiles = (event) => event.dataTransfer?.types.includes('Files');

  window.addEventListener('dragenter', (event) => {
    if (!carriesFiles(event)) return;
    depth += 1;
    dragging(true);
  });
  window.addEventListener('dragleave', (event) => {
    if (!carriesFiles(event)) return;
    depth = Math.max(0, depth - 1);
    if (depth === 0) dragging(false);
  });
  window.addEventListener('dragover', (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = 'copy';
  });
  window.addEventListener('drop', async (event) => {
    depth = 0;
    dragging(false);
    if (!carriesFiles(event)) return;
    event.preventDefault();
    addFiles(await droppedFiles(event.dataTransfer));
  });
}

/** Returns the dropped files, and the images in dropped folders. */
async function droppedFiles(transfer) {
  // All entries are read before the first await, because the transfer is empty afterwards.
  const dropped = [...transfer.items]
    .filter((item) => item.kind === 'file')
    .map((item) => ({ entry: item.webkitGetAsEntry?.(), file: item.getAsFile() }));
  const lists = [];
  for (const { entry, file } of dropped) {
    if (entry?.isDirectory) lists.push(await imagesIn(entry));
    else if (file) lists.push([file]);
  }
  return lists.flat();
}

async function imagesIn(folder) {
  const reader = folder.createReader();
  const found = [];
  try {
    for (;;) {
      const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (entries.length === 0) break;
      for (const entry of entries) {
        if (entry.isDirectory) {
          found.push(...(await imagesIn(entry)));
        } else {
          const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
          if (file.type.startsWith('image/')) found.push(file);
        }
      }
    }
  } catch {
    announce(`The folder ${folder.name} could not be read completely.`);
  }
  return found;
}

/** Adds cards for the files above all others, in their given order: the user looks for the newest files. */
function addFiles(files) {
  if (files.length === 0) {
    announce('No images found.');
    return;
  }
  const added = files.map(newJob);
  const cards = document.createDocumentFragment();
  for (const job of added) cards.append(job.card.element);
  page.cards.prepend(cards);
  jobs.push(...added);
  waiting.push(...added);
  for (const job of added) drawThumbnail(job);
  announce(`${count(added.length)} added.`);
  changed();
  pumpUploads();
}

function newJob(file) {
  const job = {
    file,
    model: page.model.value, // empty: the first of the service
    state: 'waiting',
    id: null,
    cleared: false,
    retry: null, // how a failed job is retried: 'upload' sends the file again, 'resume' polls its id again
    startedAt: 0,
    heardAt: 0, // time of the last useful answer about the job
    dueAt: 0, // earliest time of the next poll
    misses: 0,
    polling: null, // {controller, waitSeconds} during a poll
    uploading: null, // the AbortController of the upload
  };
  job.card = newCard(job);
  return job;
}

function clearAll() {
  for (const job of jobs) {
    job.cleared = true;
    job.uploading?.abort();
    job.polling?.controller.abort();
  }
  jobs = [];
  waiting = [];
  pending = [];
  page.cards.replaceChildren();
  announce('Cleared.');
  changed();
  page.files.focus();
}

function retry(job) {
  const how = job.retry;
  job.retry = null;
  job.misses = 0;
  if (how === 'resume') {
    becomePending(job);
  } else {
    job.id = null;
    waiting.push(job);
    setState(job, 'waiting');
    pumpUploads();
  }
}

// ------------------------------------------------------------------------------------------------ upload pool

function pumpUploads() {
  while (uploads < MAX_UPLOADS && waiting.length > 0) {
    const job = waiting.shift();
    uploads += 1;
    upload(job).finally(() => {
      uploads -= 1;
      pumpUploads();
    });
  }
}

/** Sends one file. Keeps its upload slot while a full server asks it to wait, so that the other files wait, too. */
async function upload(job) {
  const { signal } = (job.uploading = new AbortController());
  job.startedAt = performance.now();
  for (let attempt = 1; !job.cleared; attempt += 1) {
    setState(job, 'uploading');
    const choice = job.model ? `?model=${encodeURIComponent(job.model)}` : '';
    const answer = await request(`/v1/jobs${choice}`, {
      method: 'POST',
      body: job.file,
      headers: {
        Accept: 'application/json',
        'Content-Type': job.file.type || 'application/octet-stream',
        'Content-Disposition': `attachment; filename*=UTF-8''${encodeFileName(job.file.name)}`,
      },
      signal,
    });
    if (job.cleared) return;

    let verdict = judgeUpload(answer, attempt);
    if (answer.status === 0 && !(await isReadable(job.file))) {
      verdict = failure('The file cannot be read', 'It was moved, changed or deleted after it was chosen.', null);
    }
    if (job.cleared) return;
    switch (verdict.kind) {
      case 'accepted':
        job.id = verdict.id;
        becomePending(job);
        return;
      case 'again':
        setState(job, 'waiting', `${verdict.why} Trying again in ${seconds(verdict.delay)}.`);
        await sleep(verdict.delay, signal);
        break;
      default:
        fail(job, verdict);
        return;
    }
  }
}

/** fetch reports a lost connection and a deleted file alike, so the file itself is checked. */
async function isReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

// -------------------------------------------------------------------------------------------------- poll pool

function becomePending(job) {
  job.heardAt = performance.now();
  job.dueAt = 0;
  job.misses = 0;
  pending.push(job);
  setState(job, 'queued');
  if (pending.length > MAX_POLLS) {
    // Long polls that began while there were few jobs would now keep the other jobs from being polled.
    for (const other of pending) {
      if (other.polling?.waitSeconds > SHORT_POLL_SECONDS) other.polling.controller.abort();
    }
  }
  pumpPolls();
}

/** Polls the oldest job that is due. The queue is roughly first in, first out, so it is the most likely to have ended. */
function pumpPolls() {
  clearTimeout(pollTimer);
  while (polls < MAX_POLLS) {
    const now = performance.now();
    const idle = pending.filter((job) => !job.polling);
    const job = idle.find((candidate) => candidate.dueAt <= now);
    if (!job) {
      if (idle.length > 0) {
        const next = Math.min(...idle.map((candidate) => candidate.dueAt));
        pollTimer = setTimeout(pumpPolls, next - now + 1);
      }
      return;
    }
    polls += 1;
    poll(job).finally(() => {
      polls -= 1;
      pumpPolls();
    });
  }
}

async function poll(job) {
  const crowded = pending.length > MAX_POLLS;
  const waitSeconds = crowded ? SHORT_POLL_SECONDS : LONG_POLL_SECONDS;
  const controller = new AbortController();
  job.polling = { controller, waitSeconds };
  const askedAt = performance.now();
  const deadline = setTimeout(() => controller.abort('deadline'), waitSeconds * 1000 + POLL_GRACE_MS);
  const answer = await request(`${jobPath(job.id)}?wait=${waitSeconds}`, {
    headers: { Accept: 'application/json' },
    cache: 'no-store',
    signal: controller.signal,
  });
  clearTimeout(deadline);
  job.polling = null;
  if (job.cleared) return;
  if (answer.status === 0 && controller.signal.aborted && controller.signal.reason !== 'deadline') return; // see becomePending

  const now = performance.now();
  const verdict = judgePoll(answer, now - job.heardAt);
  switch (verdict.kind) {
    case 'final':
      finish(job, verdict.result);
      break;
    case 'queued': {
      const held = now - askedAt >= waitSeconds * 900;
      job.heardAt = now;
      job.misses = held && !crowded ? 0 : job.misses + 1;
      job.dueAt = job.misses === 0 ? now : now + backOff(job.misses, 250, 4_000);
      setNote(job, '');
      break;
    }
    case 'again': {
      job.misses += 1;
      const delay = verdict.delay ?? backOff(job.misses, 1_000, 15_000);
      job.dueAt = now + delay;
      setNote(job, `${verdict.why} Asking again in ${seconds(delay)}.`);
      break;
    }
    default:
      fail(job, verdict);
  }
}

function finish(job, result) {
  job.roundTripMs = performance.now() - job.startedAt;
  if (result.status === 'succeeded') {
    leavePending(job);
    showResult(job, result);
    setState(job, 'succeeded');
    settled(`${job.file.name}: ${spokenAnswer(result)}.`);
  } else {
    fail(job, failedResult(result), result);
  }
}

function fail(job, problem, result = null) {
  leavePending(job);
  job.retry = problem.retry;
  setState(job, 'failed');
  showProblem(job, problem, result);
  settled(`${job.file.name}: ${problem.title}.`);
}

function leavePending(job) {
  pending = pending.filter((other) => other !== job);
}

// ------------------------------------------------------------------ interpretation of answers: no side effects

/** Calls fetch and returns {status, headers, body} instead of throwing. The status is 0 when there was no answer. */
async function request(url, options) {
  for (;;) {
    const sent = key;
    const answer = await send(url, sent ? { ...options, headers: { ...options.headers, Authorization: `Bearer ${sent}` } } : options);
    if (answer.status !== 401) return answer;
    // Another request may have asked for a key, and got it, meanwhile.
    if (sent === key) await askForKey(sent ? problemText(answer).detail : '', options.signal);
    if (options.signal?.aborted) return { status: 0, headers: new Headers(), body: null };
  }
}

async function send(url, options) {
  try {
    const response = await fetch(url, options);
    const text = await response.text();
    let body = null;
    try {
      body = JSON.parse(text);
    } catch {
      // The body is not JSON, for example because a proxy made it. The caller uses the status alone.
    }
    return { status: response.status, headers: response.headers, body: isObject(body) ? body : null };
  } catch {
    return { status: 0, headers: new Headers(), body: null };
  }
}

/** Shows the form, and waits until a key is entered or the request is aborted. */
function askForKey(why, signal) {
  page.signInProblem.textContent = why;
  if (page.signIn.hidden) {
    page.signIn.hidden = false;
    page.key.focus();
  }
  return new Promise((resolve) => {
    keyless.push(resolve);
    signal?.addEventListener('abort', resolve, { once: true });
  });
}

function signIn(event) {
  event.preventDefault();
  key = page.key.value.trim();
  page.key.value = '';
  page.signIn.hidden = true;
  try {
    sessionStorage.setItem(KEY_ITEM, key);
  } catch {
    // Without a storage the key ends with the page.
  }
  for (const resolve of keyless.splice(0)) resolve();
}

function storedKey() {
  try {
    return sessionStorage.getItem(KEY_ITEM) ?? '';
  } catch {
    return '';
  }
}

function judgeUpload(answer, attempt) {
  const { status, headers, body } = answer;
  if (status >= 200 && status < 300) {
    const id = body?.id ?? headers.get('Location')?.split('/').pop();
    if (id) return { kind: 'accepted', id: String(id) };
    return failure('Unexpected answer', 'The server accepted the image but returned no job id.', 'upload');
  }
  const transient = [0, 429, 502, 503].includes(status);
  if (transient && attempt < MAX_UPLOAD_ATTEMPTS) {
    return { kind: 'again', delay: retryAfter(headers) ?? backOff(attempt, 1_000, 15_000), why: trouble(status) };
  }
  const { title, detail } = problemText(answer);
  return failure(title, detail, transient || status >= 500 || status === 408 ? 'upload' : null);
}

function judgePoll(answer, silentMs) {
  const { status, headers, body } = answer;
  // A result is final whatever the HTTP status is.
  if (['succeeded', 'failed', 'expired'].includes(body?.status)) return { kind: 'final', result: body };
  if (status >= 200 && status < 300 && body) return { kind: 'queued' };

  if (status === 404) {
    if (silentMs < UNKNOWN_AFTER_MS) {
      return { kind: 'again', delay: 2_000, why: 'The server does not know this job yet.' };
    }
    return failure('Job not found', 'The server no longer knows this job. Retry to send the image again.', 'upload');
  }
  const transient = status < 400 || status >= 500 || status === 429 || status === 408;
  const { title, detail } = problemText(answer);
  if (!transient) return failure(title, detail, status === 422 || status === 415 || status === 413 ? null : 'upload');
  if (silentMs < GIVE_UP_AFTER_MS) return { kind: 'again', delay: retryAfter(headers), why: trouble(status) };
  return failure(title, `${detail} The job may still succeed: retry to ask for it again.`, 'resume');
}

function failedResult(result) {
  const { code = '', message = '' } = result.error ?? {};
  if (result.status === 'expired' || code === 'expired') {
    return failure('No answer in time', message || 'The job expired before a worker classified the image.', 'upload');
  }
  const title = {
    undecodable: 'The image cannot be decoded',
    unsupported_type: 'File type not supported',
    too_many_pixels: 'Too many pixels',
    decode_timeout: 'Takes too long to decode',
    too_large_decoded: 'Needs too much memory to decode',
    input_too_large: 'File too large',
    input_missing: 'The stored image is missing',
    malformed: 'Malformed request',
    unknown_model: 'The worker does not have this model',
    attempts_exhausted: 'Failed after several attempts',
  }[code];
  return failure(title ?? 'Classification failed', message, FINAL_CODES.includes(code) ? null : 'upload');
}

function failure(title, detail, retryHow) {
  return { kind: 'failed', title, detail, retry: retryHow };
}

/** Returns title and detail of a problem document (RFC 9457), or texts for the status. */
function problemText({ status, body }) {
  if (status === 0) return { title: 'Cannot reach the server', detail: 'The connection failed or was closed.' };
  const words = {
    413: 'File too large',
    415: 'File type not supported',
    422: 'The image cannot be decoded',
    429: 'Too many requests',
    503: 'The server is full',
    504: 'No answer in time',
  };
  const title = textOf(body?.title) || words[status] || 'Request failed';
  return { title, detail: textOf(body?.detail) || `The server answered with status ${status}.` };
}

function trouble(status) {
  if (status === 0) return 'The server cannot be reached.';
  if (status === 503) return 'The server is full.';
  if (status === 429) return 'The server has received too many requests.';
  return `The server answered with status ${status}.`;
}

/** Returns the milliseconds in a Retry-After header (seconds or a date), or null. */
function retryAfter(headers) {
  const value = headers.get('Retry-After');
  if (!value) return null;
  const ms = /^\d+$/.test(value.trim()) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Number.isFinite(ms) ? Math.min(Math.max(ms, 500), MAX_RETRY_AFTER_MS) : null;
}

/** Returns a delay that doubles with each attempt, plus up to a quarter of jitter so that many pages do not retry together. */
function backOff(attempt, firstMs, maxMs) {
  return Math.min(firstMs * 2 ** (attempt - 1), maxMs) * (1 + Math.random() / 4);
}

/** Encodes a file name by RFC 8187: encodeURIComponent keeps four characters that a header parameter must not contain. */
function encodeFileName(name) {
  return encodeURIComponent(name).replace(/['()*]/g, (mark) => `%${mark.charCodeAt(0).toString(16).toUpperCase()}`);
}

function jobPath(id) {
  return `/v1/jobs/${encodeURIComponent(id)}`;
}

function isObject(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function textOf(value) {
  return typeof value === 'string' ? value : '';
}

/** The labels of an image that may have several. Empty if the model gives each image one label, or if none applies. */
function labelsOf(result) {
  return (Array.isArray(result.labels) ? result.labels : []).filter((label) => textOf(label?.label));
}

/** The answer as a screen reader announces it. */
function spokenAnswer(result) {
  const labels = labelsOf(result);
  if (labels.length > 0) return labels.slice(0, SHOWN_LABELS).map((label) => label.label).join(', ');
  const best = result.predictions?.[0];
  return `${best?.label ?? 'no prediction'}${hasScore(best) ? `, ${percent(best.score)}` : ''}`;
}

function hasScore(prediction) {
  return typeof prediction?.score === 'number';
}

function percent(score) {
  if (score > 0 && score < 0.001) return '<0.1%';
  if (score < 1 && score > 0.999) return '>99.9%';
  return `${(score * 100).toFixed(1)}%`;
}

function milliseconds(ms) {
  if (ms >= 10_000) return `${(ms / 1000).toFixed(1)} s`;
  return ms < 10 ? `${Number(ms.toFixed(1))} ms` : `${Math.round(ms)} ms`;
}

function seconds(ms) {
  return `${Math.max(1, Math.round(ms / 1000))}\u00a0s`;
}

function count(images) {
  return images === 1 ? '1 image' : `${images} images`;
}

/** Waits, or returns early when the signal is aborted. */
function sleep(ms, signal) {
  return new Promise((resolve) => {
    setTimeout(resolve, ms);
    signal.addEventListener('abort', resolve);
  });
}

// ------------------------------------------------------------------------------------------------------- drawing

/** Creates an element with text content and attributes. */
function el(tag, className, text, attributes = {}) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function newCard(job) {
  const { name } = job.file;
  const card = {
    element: el('li', 'card', undefined, { 'data-testid': 'card', 'data-state': job.state, tabindex: '-1' }),
    thumb: el('div', 'thumb', fileKind(job.file), { 'data-testid': 'thumbnail', 'aria-hidden': 'true' }),
    state: el('p', 'state', STATE_TEXT[job.state], { 'data-testid': 'state' }),
    body: el('div', 'card-body'),
    note: el('p', 'note', '', { 'data-testid': 'note' }),
    foot: el('div', 'card-foot'),
  };
  const head = el('div', 'card-head');
  head.append(el('h2', 'name', name, { title: name, 'data-testid': 'name' }), card.state);
  card.note.hidden = true;
  card.body.append(blankPredictions());
  card.element.append(card.thumb, head, card.body, card.note, card.foot);
  drawBlankFoot(card.foot);
  return card;
}

// A new card has empty rows, so that the layout does not jump when the answer arrives.
function blankPredictions() {
  const list = el('ol', 'predictions', undefined, { 'aria-hidden': 'true' });
  for (let rank = 0; rank < SHOWN_PREDICTIONS; rank += 1) {
    const row = el('li', 'prediction');
    row.append(el('span', 'bar'));
    list.append(row);
  }
  return list;
}

function drawBlankFoot(foot) {
  const timings = el('dl', 'timings');
  for (const name of [...STAGES, 'round trip']) timings.append(timing(name, 0));
  foot.replaceChildren(timings, el('div', 'meta', '\u00a0'));
  foot.hidden = false;
}

/** Returns the text that replaces an image which the browser cannot draw, such as TIFF or HEIC. */
function fileKind(file) {
  const extension = /\.([a-z0-9]{1,5})$/i.exec(file.name)?.[1];
  return (extension ?? /^image\/([a-z0-9]{1,5})/.exec(file.type)?.[1] ?? 'file').toUpperCase();
}

/** Draws thumbnails one at a time, so that the browser does not decode a hundred photographs at once. */
let thumbnails = Promise.resolve();
function drawThumbnail(job) {
  thumbnails = thumbnails.then(() => (job.cleared ? undefined : thumbnail(job)));
}

/** Draws a small copy and revokes the object URL at once, so that the page does not keep full-size images in memory. */
async function thumbnail(job) {
  const url = URL.createObjectURL(job.file);
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const { naturalWidth: width, naturalHeight: height } = image;
    if (width === 0 || height === 0) return;
    const side = Math.min(width, height);
    const canvas = el('canvas');
    canvas.width = THUMBNAIL_PIXELS;
    canvas.height = THUMBNAIL_PIXELS;
    const context = canvas.getContext('2d');
    context.imageSmoothingQuality = 'high';
    context.drawImage(image, (width - side) / 2, (height - side) / 2, side, side, 0, 0, canvas.width, canvas.height);
    job.card.thumb.replaceChildren(canvas);
  } catch {
    // The text from fileKind stays.
  } finally {
    URL.revokeObjectURL(url);
  }
}

function setState(job, state, note = '') {
  const { element, state: text, body, foot } = job.card;
  if (job.state === 'failed' && state !== 'failed') {
    body.firstElementChild.replaceWith(blankPredictions());
    drawBlankFoot(foot);
  }
  job.state = state;
  element.dataset.state = state;
  text.textContent = STATE_TEXT[state];
  setNote(job, note);
  changed();
}

function setNote(job, text) {
  job.card.note.textContent = text;
  job.card.note.hidden = text === '';
}

function showResult(job, result) {
  const answer = el('div');
  const labels = labelsOf(result);
  if (labels.length > 0) answer.append(labelList(labels));
  const list = el('ol', 'predictions', undefined, { 'aria-label': 'Predictions' });
  (Array.isArray(result.predictions) ? result.predictions : []).slice(0, SHOWN_PREDICTIONS).forEach((prediction, rank) => {
    const label = textOf(prediction.label) || `class ${prediction.class_index}`;
    const row = el('li', 'prediction', undefined, { 'data-testid': 'prediction' });
    const bar = el('span', 'bar');
    const fill = el('span', 'fill');
    const text = el('span', 'label', label, { title: label });
    if (rank === 0) text.dataset.testid = 'top-label';
    bar.append(fill, text);
    row.append(bar);
    if (hasScore(prediction)) {
      fill.style.setProperty('--share', Math.min(Math.max(prediction.score, 0), 1));
      row.append(el('span', 'percent', percent(prediction.score), { 'data-testid': 'score' }));
    }
    list.append(row);
  });
  answer.append(list);
  job.card.body.firstElementChild.replaceWith(answer);
  showFoot(job, result);
}

/** The labels above their thresholds; the scores of the best classes are in the list below them. */
function labelList(labels) {
  const list = el('ul', 'labels', undefined, { 'aria-label': 'Labels', 'data-testid': 'labels' });
  for (const { label } of labels.slice(0, SHOWN_LABELS)) list.append(el('li', '', label));
  const more = labels.length - SHOWN_LABELS;
  if (more > 0) list.append(el('li', 'more', `and ${more} more`));
  return list;
}

function showProblem(job, problem, result) {
  const box = el('div', 'problem', undefined, { 'data-testid': 'error' });
  box.append(el('p', 'problem-title', problem.title));
  if (problem.detail && problem.detail !== problem.title) box.append(el('p', '', problem.detail));
  if (problem.retry) {
    const button = el('button', 'button', 'Retry', {
      type: 'button',
      'data-testid': 'retry',
      'aria-label': `Retry ${job.file.name}`,
    });
    button.addEventListener('click', () => {
      retry(job);
      job.card.element.focus(); // the button goes away with its box
    });
    box.append(button);
  }
  job.card.body.firstElementChild.replaceWith(box);
  if (job.id) showFoot(job, result);
  else job.card.foot.hidden = true;
}

/** Shows the durations that the worker measured, and the round trip that this page measured. */
function showFoot(job, result) {
  const { foot } = job.card;
  foot.replaceChildren();
  if (result) {
    const timings = el('dl', 'timings', undefined, { 'data-testid': 'timings' });
    for (const name of STAGES) {
      const ms = result.timings_ms?.[name];
      if (typeof ms === 'number') timings.append(timing(name, ms));
    }
    timings.append(timing('round trip', job.roundTripMs));
    foot.append(timings);
  }

  const meta = el('div', 'meta');
  const about = [];
  if (result?.model) about.push([result.model.name, result.model.version].filter(Boolean).join(' '));
  if (result?.attempt > 1) about.push(`attempt ${result.attempt}`);
  meta.append(el('span', '', about.join(' · '), { 'data-testid': 'model' }));
  meta.append(
    el('a', '', 'Result JSON', {
      href: result && key ? resultUrl(result) : jobPath(job.id), // a link carries no key
      target: '_blank',
      rel: 'noopener',
      'data-testid': 'result-link',
      'aria-label': `Result JSON for ${job.file.name}`,
    }),
  );
  foot.append(meta);
  foot.hidden = false;
}

function resultUrl(result) {
  return URL.createObjectURL(new Blob([JSON.stringify(result, null, 2)], { type: 'application/json' }));
}

function timing(name, ms) {
  const pair = el('div');
  pair.append(el('dt', '', name), el('dd', '', milliseconds(ms)));
  return pair;
}

function summarize() {
  const done = jobs.filter((job) => job.state === 'succeeded').length;
  const failed = jobs.filter((job) => job.state === 'failed').length;
  const open = jobs.length - done - failed;
  const parts = [count(jobs.length), `${done} done`];
  if (failed > 0) parts.push(`${failed} failed`);
  if (open > 0) parts.push(`${open} in progress`);
  return { text: parts.join(', '), ended: done + failed, open };
}

function changed() {
  const { text, ended, open } = summarize();
  const some = jobs.length > 0;
  page.root.classList.toggle('has-cards', some);
  page.toolbar.hidden = !some;
  page.summary.textContent = some ? text : '';
  page.retryFailed.hidden = jobs.filter((job) => job.retry).length < 2;
  document.title = open > 0 ? `(${ended}/${jobs.length}) imgcls` : 'imgcls';
}

// Screen readers announce each result while there are few, and only the summary when there are many.
let unannounced = [];
let announceTimer = 0;
function settled(sentence) {
  unannounced.push(sentence);
  if (announceTimer) return;
  announceTimer = setTimeout(() => {
    announceTimer = 0;
    const { text } = summarize();
    announce(unannounced.length <= 3 ? `${unannounced.join(' ')} ${text}.` : `${text}.`);
    unannounced = [];
  }, 1_500);
}

function announce(text) {
  page.announcer.textContent = text;
}
