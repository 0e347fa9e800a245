// Requests to the service with the key of the tab, what their answers mean to people, and helpers that all modules share.
// Text from outside (file names, labels, error messages) is always inserted as text, never as markup.

const KEY_ITEM = 'imgcls-key'; // in the session storage: the key ends with the tab
const MAX_RETRY_AFTER_MS = 60_000;

export const byId = (id) => document.getElementById(id);

/** The key that is sent with every request; empty until the service asks for one. */
let key = storedKey();
/** Requests that wait until a key is entered. */
let keyless = [];
const signInForm = byId('sign-in');
signInForm.addEventListener('submit', signIn);

/** Calls fetch and returns {status, headers, body} instead of throwing. A list is returned as `items`, without a body. The status is
 * 0 when there was no answer. Asks for a key when the service needs one. With `isStream`, the body of a good answer is returned
 * unread, as `stream`. */
export async function request(url, options = {}, isStream = false) {
  for (;;) {
    const sent = key;
    const answer = await send(url, options, isStream);
    if (answer.status !== 401) return answer;
    // Another request may have asked for a key, and got it, meanwhile.
    if (sent === key) await askForKey(sent ? problemText(answer).detail : '', options.signal);
    if (options.signal?.aborted) return { status: 0, headers: new Headers(), body: null };
  }
}

/** The same, but an answer that a key is needed is returned like any other. */
export async function send(url, options = {}, isStream = false) {
  const headers = key ? { ...options.headers, Authorization: `Bearer ${key}` } : options.headers;
  try {
    const response = await fetch(url, { ...options, headers });
    const { status } = response;
    if (isStream && response.ok) return { status, headers: response.headers, body: null, stream: response.body };
    const text = await response.text();
    let body = null;
    try {
      body = JSON.parse(text);
    } catch {
      // The body is not JSON, for example because a proxy made it. The caller uses the status alone.
    }
    return { status, headers: response.headers, body: isObject(body) ? body : null, items: Array.isArray(body) ? body : null };
  } catch {
    return { status: 0, headers: new Headers(), body: null };
  }
}

/** Returns the image of a job as a URL for an element, or null. With a key it is fetched, because an element sends none. `what`
 * is `image`, or `thumbnail` for a small copy that every browser can show. */
export async function imageUrl(id, what) {
  if (!key) return `${jobPath(id)}/${what}`;
  const answer = await request(`${jobPath(id)}/${what}`, {}, true);
  if (!answer.stream) return null;
  return URL.createObjectURL(await new Response(answer.stream, { headers: answer.headers }).blob());
}

export function hasKey() {
  return key !== '';
}

/** Shows the form, and waits until a key is entered or the request is aborted. */
function askForKey(why, signal) {
  byId('sign-in-problem').textContent = why;
  if (signInForm.hidden) {
    signInForm.hidden = false;
    byId('key').focus();
  }
  return new Promise((resolve) => {
    keyless.push(resolve);
    signal?.addEventListener('abort', resolve, { once: true });
  });
}

function signIn(event) {
  event.preventDefault();
  key = byId('key').value.trim();
  byId('key').value = '';
  signInForm.hidden = true;
  try {
    sessionStorage.setItem(KEY_ITEM, key);
  } catch {
    // Without a storage the key ends with the page.
  }
  for (const resolve of keyless.splice(0)) resolve();
  document.dispatchEvent(new Event('signed-in'));
}

function storedKey() {
  try {
    return sessionStorage.getItem(KEY_ITEM) ?? '';
  } catch {
    return '';
  }
}

/** Returns title and detail of a problem document (RFC 9457), or texts for the status. */
export function problemText({ status, body }) {
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
  return { title, detail: forPeople(textOf(body?.detail)) || `The server answered with status ${status}.` };
}

/** Leaves out remarks that name flags or commands of the operator, and begins in upper case. */
export function forPeople(detail) {
  const text = detail.replace(/ \([^()]*(--|`)[^()]*\)/g, '');
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function trouble(status) {
  if (status === 0) return 'The server cannot be reached.';
  if (status === 503) return 'The server is full.';
  if (status === 429) return 'The server has received too many requests.';
  return `The server answered with status ${status}.`;
}

/** Returns the milliseconds in a Retry-After header (seconds or a date), or null. */
export function retryAfter(headers) {
  const value = headers.get('Retry-After');
  if (!value) return null;
  const ms = /^\d+$/.test(value.trim()) ? Number(value) * 1000 : Date.parse(value) - Date.now();
  return Number.isFinite(ms) ? Math.min(Math.max(ms, 500), MAX_RETRY_AFTER_MS) : null;
}

/** Returns a delay that doubles with each attempt, plus up to a quarter of jitter so that many pages do not retry together. */
export function backOff(attempt, firstMs, maxMs) {
  return Math.min(firstMs * 2 ** (attempt - 1), maxMs) * (1 + Math.random() / 4);
}

export function jobPath(id) {
  return `/v1/jobs/${encodeURIComponent(id)}`;
}

/** Encodes a file name by RFC 8187: encodeURIComponent keeps four characters that a header parameter must not contain. */
export function encodeFileName(name) {
  return encodeURIComponent(name).replace(/['()*]/g, (mark) => `%${mark.charCodeAt(0).toString(16).toUpperCase()}`);
}

/** The headers of a request that submits a file. */
export function submitHeaders(file) {
  return {
    Accept: 'application/json',
    'Content-Type': file.type || 'application/octet-stream',
    'Content-Disposition': `attachment; filename*=UTF-8''${encodeFileName(file.name)}`,
  };
}

export function isObject(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

export function textOf(value) {
  return typeof value === 'string' ? value : '';
}

export function isFinal(job) {
  return ['succeeded', 'failed', 'expired'].includes(job?.status);
}

export function percent(score) {
  if (score > 0 && score < 0.001) return '<0.1%';
  if (score < 1 && score > 0.999) return '>99.9%';
  return `${(score * 100).toFixed(1)}%`;
}

export function milliseconds(ms) {
  if (ms >= 10_000) return `${(ms / 1000).toFixed(1)} s`;
  return ms < 10 ? `${Number(ms.toFixed(1))} ms` : `${Math.round(ms)} ms`;
}

/** A time that need not be exact. */
export function about(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))}\u00a0s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)}\u00a0min` : `${(seconds / 3600).toFixed(1)}\u00a0h`;
}

export function size(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(Math.ceil(bytes / 1e5) / 10).toFixed(1)} MB`;
}

/** Waits, or returns early when the signal is aborted. */
export function sleep(ms, signal) {
  return new Promise((resolve) => {
    setTimeout(resolve, ms);
    signal?.addEventListener('abort', resolve);
  });
}
