// The page: files in, one card each, POST /v1/jobs, then GET /v1/jobs/{id} until the job has ended.
// Read from the top: intake, the two pools, what an answer means (pure), then what is drawn.
// Whatever comes from outside (file names, labels, error texts) reaches the page as text, never as markup.

// A browser opens six connections to one HTTP/1.1 server. Four carry uploads and two carry long polls, so neither
// can starve the other, however many files there are.
const MAX_UPLOADS = 4;
const MAX_POLLS = 2;
const MAX_UPLOAD_ATTEMPTS = 6;
const LONG_POLL_SECONDS = 20;
const SHORT_POLL_SECONDS = 1;
const POLL_GRACE_MS = 15_000; // beyond the wait asked for, the connection counts as lost
const GIVE_UP_AFTER_MS = 180_000; // without a useful answer about a job
const UNKNOWN_AFTER_MS = 20_000; // of 404 for a job that was accepted
const MAX_RETRY_AFTER_MS = 60_000;
const SHOWN_PREDICTIONS = 5;
const THUMBNAIL_PIXELS = 240;

const STATE_TEXT = {
  waiting: 'Waiting to upload',
  uploading: 'Uploading',
  queued: 'In the queue',
  succeeded: 'Done',
  failed: 'Failed',
};

/** The members of timings_ms, in the order of an image's life. */
const STAGES = ['queued', 'fetched', 'decoded', 'inferred', 'total'];

/** A result with one of these codes would be the same again for the same file. */
const FINAL_CODES = ['undecodable', 'unsupported_type', 'too_many_pixels', 'decode_timeout', 'too_large_decoded', 'input_too_large',
  'malformed'];

const byId = (id) => document.getElementById(id);
const page = {
  root: document.documentElement,
  drop: byId('drop'),
  files: byId('files'),
  toolbar: byId('toolbar'),
  summary: byId('summary'),
  retryFailed: byId('retry-failed'),
  clear: byId('clear'),
  cards: byId('cards'),
  announcer: byId('announcer'),
};

/** Every job with a card, in the order it was added. */
let jobs = [];
/** Jobs waiting for an upload place, first come first served. */
let waiting = [];
/** Accepted jobs without an end, oldest first. */
let pending = [];
let uploads = 0;
let polls = 0;
let pollTimer = 0;

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
  listenForDrops();

  page.clear.addEventListener('click', clearAll);
  page.retryFailed.addEventListener('click', () => {
    jobs.filter((job) => job.retry).forEach(retry);
    page.files.focus({ preventScroll: true }); // the button goes away, the reader stays where they are
  });
  window.addEventListener('online', () => {
    for (const job of pending) job.dueAt = 0;
    pumpPolls();
  });
}

// ---------------------------------------------------------------------------------------------------- intake

function listenForDrops() {
  let depth = 0; // enter and leave also fire for every child
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

/** The dropped files; of a dropped folder, the images in it. */
async function droppedFiles(transfer) {
  // All entries are taken before the first await: afterwards the transfer is empty.
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

/** The newest batch stands on top, in its given order: what was just added is what one looks for. */
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
    state: 'waiting',
    id: null,
    cleared: false,
    retry: null, // how a failed job can be tried again: 'upload' from the start, 'resume' asking for its id
    startedAt: 0,
    heardAt: 0, // last useful answer about it
    dueAt: 0, // not asked for before
    misses: 0,
    polling: null, // {controller, waitSeconds} while a poll is under way
    uploading: null, // the AbortController of its upload
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

/** Sends one file. While a full server asks for patience the place is kept, so that the others hold back too. */
async function upload(job) {
  const { signal } = (job.uploading = new AbortController());
  job.startedAt = performance.now();
  for (let attempt = 1; !job.cleared; attempt += 1) {
    setState(job, 'uploading');
    const answer = await request('/v1/jobs', {
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
      verdict = failure('The file cannot be read', 'It was moved, changed or deleted since it was chosen.', null);
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

/** A lost connection and a file gone from the disk look the same to fetch; only the file itself can tell. */
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
    // Long waits begun when there were few would now keep the others from being asked for.
    for (const other of pending) {
      if (other.polling?.waitSeconds > SHORT_POLL_SECONDS) other.polling.controller.abort();
    }
  }
  pumpPolls();
}

/** Asks for the oldest job that is due: the queue is about first in first out, so it is the likeliest to have ended. */
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
    const best = result.predictions?.[0];
    settled(`${job.file.name}: ${best?.label ?? 'no prediction'}${hasScore(best) ? `, ${percent(best.score)}` : ''}.`);
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

// --------------------------------------------------------------------------- what an answer means: no effects

/** fetch without exceptions: {status, headers, body}; status 0 when nothing came back. */
async function request(url, options) {
  try {
    const response = await fetch(url, options);
    const text = await response.text();
    let body = null;
    try {
      body = JSON.parse(text);
    } catch {
      // Not JSON, as from a proxy in between: the status has to say it all.
    }
    return { status: response.status, headers: response.headers, body: isObject(body) ? body : null };
  } catch {
    return { status: 0, headers: new Headers(), body: null };
  }
}

function judgeUpload(answer, attempt) {
  const { status, headers, body } = answer;
  if (status >= 200 && status < 300) {
    const id = body?.id ?? headers.get('Location')?.split('/').pop();
    if (id) return { kind: 'accepted', id: String(id) };
    return failure('Unexpected answer', 'The server took the image without naming a job.', 'upload');
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
  // A job's end is an end under whichever status it travels.
  if (['succeeded', 'failed', 'expired'].includes(body?.status)) return { kind: 'final', result: body };
  if (status >= 200 && status < 300 && body) return { kind: 'queued' };

  if (status === 404) {
    if (silentMs < UNKNOWN_AFTER_MS) {
      return { kind: 'again', delay: 2_000, why: 'The server does not know this job yet.' };
    }
    return failure('Job not found', 'The server no longer knows this job. The image can be sent again.', 'upload');
  }
  const transient = status < 400 || status >= 500 || status === 429 || status === 408;
  const { title, detail } = problemText(answer);
  if (!transient) return failure(title, detail, status === 422 || status === 415 || status === 413 ? null : 'upload');
  if (silentMs < GIVE_UP_AFTER_MS) return { kind: 'again', delay: retryAfter(headers), why: trouble(status) };
  return failure(title, `${detail} The job may still end well: retrying asks for it again.`, 'resume');
}

function failedResult(result) {
  const { code = '', message = '' } = result.error ?? {};
  if (result.status === 'expired' || code === 'expired') {
    return failure('No answer in time', message || 'The job expired before a worker got to it.', 'upload');
  }
  const title = {
    undecodable: 'Not a readable image',
    unsupported_type: 'Type of file not supported',
    too_many_pixels: 'Too many pixels',
    decode_timeout: 'Takes too long to decode',
    too_large_decoded: 'Needs too much memory to decode',
    input_too_large: 'File too large',
    input_missing: 'The stored image is missing',
    malformed: 'Malformed request',
    attempts_exhausted: 'Given up after several attempts',
  }[code];
  return failure(title ?? 'Classification failed', message, FINAL_CODES.includes(code) ? null : 'upload');
}

function failure(title, detail, retryHow) {
  return { kind: 'failed', title, detail, retry: retryHow };
}

/** The problem document's own words (RFC 9457), else words for the status. */
function problemText({ status, body }) {
  if (status === 0) return { title: 'Server not reached', detail: 'The connection failed or was cut off.' };
  const words = {
    413: 'File too large',
    415: 'Type of file not supported',
    422: 'Not a readable image',
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
  if (status === 429) return 'The server asks for fewer requests.';
  return `The server answered with status ${status}.`;
}

/** Milliseconds from a Retry-After header (seconds or a date), or null. */
function retryAfter(headers) {
  const value = headers.get('Retry-After');
  if (!value) return null;
  const ms = /^\d+$/.test(value.trim()) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Number.isFinite(ms) ? Math.min(Math.max(ms, 500), MAX_RETRY_AFTER_MS) : null;
}

/** Doubling, with up to a quarter of jitter so that many pages do not return as one. */
function backOff(attempt, firstMs, maxMs) {
  return Math.min(firstMs * 2 ** (attempt - 1), maxMs) * (1 + Math.random() / 4);
}

/** RFC 8187: encodeURIComponent leaves four marks standing that a header parameter may not hold. */
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

/** Ends early when the signal does. */
function sleep(ms, signal) {
  return new Promise((resolve) => {
    setTimeout(resolve, ms);
    signal.addEventListener('abort', resolve);
  });
}

// ------------------------------------------------------------------------------------------------- what is drawn

/** An element; `text` becomes text, and properties are set as attributes. */
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

// Before the answer a card already holds its empty rows, so that nothing jumps when it comes.
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

/** What stands in for a picture that this browser cannot draw: TIFF, HEIC and the like. */
function fileKind(file) {
  const extension = /\.([a-z0-9]{1,5})$/i.exec(file.name)?.[1];
  return (extension ?? /^image\/([a-z0-9]{1,5})/.exec(file.type)?.[1] ?? 'file').toUpperCase();
}

/** One at a time, so that a hundred photographs do not decode at once. */
let thumbnails = Promise.resolve();
function drawThumbnail(job) {
  thumbnails = thumbnails.then(() => (job.cleared ? undefined : thumbnail(job)));
}

/** A small copy is drawn and the object URL let go at once: the page never holds on to full-size pictures. */
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
    // The placeholder stays.
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
  job.card.body.firstElementChild.replaceWith(list);
  showFoot(job, result);
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

/** Where the time went, as the worker tells it, and as it was for the one who waited. */
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
      href: jobPath(job.id),
      target: '_blank',
      rel: 'noopener',
      'data-testid': 'result-link',
      'aria-label': `Result JSON for ${job.file.name}`,
    }),
  );
  foot.append(meta);
  foot.hidden = false;
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

// Screen readers hear each result while there are few, and the summary where each would drown the rest.
let untold = [];
let tellTimer = 0;
function settled(sentence) {
  untold.push(sentence);
  if (tellTimer) return;
  tellTimer = setTimeout(() => {
    tellTimer = 0;
    const { text } = summarize();
    announce(untold.length <= 3 ? `${untold.join(' ')} ${text}.` : `${text}.`);
    untold = [];
  }, 1_500);
}

function announce(text) {
  page.announcer.textContent = text;
}
