// Follows jobs until they end: by event streams (GET /v1/events), each of which has a group of jobs.
//
// A browser opens six connections to one HTTP/1.1 server. Four are for uploads and two for streams, so that neither can
// starve the other, however many files there are. A stream takes all jobs that are not followed yet, and the next one those
// that were accepted meanwhile; so the groups become as large as the service is fast. When streams do not work, each job is
// asked for by itself.

import { failure } from './draw.js';
import { about, backOff, isFinal, isObject, jobPath, problemText, request, retryAfter, sleep, trouble } from './http.js';

const MAX_STREAMS = 2;
const MAX_JOBS = 100; // of one stream, as the service says
const REGROUP_AFTER_MS = 1_500; // jobs that wait for a stream this long join another one
const SILENT_STREAM_MS = 60_000; // the service sends a comment every 15 s
const GIVE_UP_AFTER_MS = 180_000; // time without a useful answer about a job
const UNKNOWN_AFTER_MS = 20_000; // time in which a job that was accepted may be unknown

/** Accepted jobs that have not ended, by id, oldest first. */
const pending = new Map();
const streams = new Set();
let timer = 0;
let regroupTimer = 0;
let report;

/** `callbacks`: progress(job, state), final(job, result), failed(job, problem), note(job, text). */
export function start(callbacks) {
  report = callbacks;
  window.addEventListener('online', () => {
    for (const job of pending.values()) job.dueAt = 0;
    pump();
  });
}

/** Follows a job with an id. */
export function follow(job) {
  Object.assign(job, { heardAt: performance.now(), dueAt: 0, misses: 0, stream: null });
  pending.set(job.id, job);
  pump();
}

export function unfollow(job) {
  pending.delete(job.id);
  job.stream?.jobs.delete(job.id);
  if (job.stream?.jobs.size === 0) job.stream.controller.abort();
  job.stream = null;
}

function pump() {
  clearTimeout(timer);
  for (;;) {
    const now = performance.now();
    const idle = [...pending.values()].filter((job) => !job.stream);
    if (idle.length === 0) return;
    const due = idle.filter((job) => job.dueAt <= now);
    if (due.length === 0) {
      timer = setTimeout(pump, Math.min(...idle.map((job) => job.dueAt)) - now + 1);
      return;
    }
    if (streams.size === MAX_STREAMS) {
      regroupTimer ||= setTimeout(regroup, REGROUP_AFTER_MS);
      return;
    }
    run(due.slice(0, MAX_JOBS));
  }
}

/** Ends the stream with the fewest jobs, so that the next one has them and those that wait. */
function regroup() {
  regroupTimer = 0;
  const smallest = [...streams].sort((one, other) => one.jobs.size - other.jobs.size)[0];
  const waits = [...pending.values()].some((job) => !job.stream && job.dueAt <= performance.now());
  if (waits && smallest?.jobs.size < MAX_JOBS) smallest.controller.abort();
  pump();
}

async function run(group) {
  const stream = { jobs: new Map(group.map((job) => [job.id, job])), controller: new AbortController() };
  streams.add(stream);
  for (const job of group) job.stream = stream;
  const answer = await read(stream);
  if (!stream.controller.signal.aborted || stream.isSilent) await afterwards(stream, answer);
  for (const job of stream.jobs.values()) job.stream = null;
  streams.delete(stream);
  pump();
}

/** Reads a stream to its end, and returns its answer. */
async function read(stream) {
  const { signal } = stream.controller;
  const jobs = [...stream.jobs.keys()].join(',');
  const answer = await request(`/v1/events?jobs=${jobs}`, { headers: { Accept: 'text/event-stream' }, cache: 'no-store', signal }, true);
  if (!answer.stream) return answer;
  const reader = answer.stream.pipeThrough(new TextDecoderStream()).getReader();
  let watchdog = 0;
  let text = '';
  try {
    for (;;) {
      watchdog = setTimeout(() => {
        stream.isSilent = true;
        stream.controller.abort();
      }, SILENT_STREAM_MS);
      const { done, value } = await reader.read();
      clearTimeout(watchdog);
      if (done) return answer;
      const events = (text + value).split('\n\n');
      text = events.pop();
      for (const event of events) take(stream, event);
    }
  } catch {
    clearTimeout(watchdog);
    return answer;
  }
}

/** Takes one event of a stream. */
function take(stream, event) {
  const lines = event.split('\n');
  const field = (name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2) ?? '';
  let state;
  try {
    state = JSON.parse(field('data'));
  } catch {
    return; // a comment
  }
  const job = stream.jobs.get(state?.id);
  if (!job) return;
  switch (field('event')) {
    case 'finished':
      unfollow(job);
      report.final(job, state);
      break;
    case 'removed':
      unfollow(job);
      report.failed(job, failure('The job was deleted', 'Someone deleted it while it waited.', 'upload'));
      break;
    case 'unknown':
      stream.jobs.delete(job.id);
      job.stream = null;
      judgeUnknown(job);
      break;
    default:
      job.heardAt = performance.now();
      job.misses = 0;
      report.progress(job, state);
  }
}

function judgeUnknown(job) {
  if (performance.now() - job.heardAt < UNKNOWN_AFTER_MS) {
    job.dueAt = performance.now() + 2_000;
    return;
  }
  unfollow(job);
  report.failed(job, failure('Job not found', 'The server no longer knows this job. Retry to send the image again.', 'upload'));
}

/** Decides about the jobs that a stream has left. */
async function afterwards(stream, answer) {
  const isOpened = answer.status === 200 && !stream.isSilent;
  for (const job of [...stream.jobs.values()]) {
    job.misses += 1;
    if (isOpened) {
      job.heardAt = performance.now();
      job.dueAt = job.heardAt + backOff(job.misses, 250, 4_000);
    } else {
      await ask(job, answer);
    }
  }
}

/** Asks for one job without a stream. */
async function ask(job, failed) {
  const wait = retryAfter(failed.headers);
  if (wait) await sleep(Math.min(wait, 2_000), job.stream?.controller.signal);
  if (!pending.has(job.id)) return;
  const answer = await request(jobPath(job.id), { headers: { Accept: 'application/json' }, cache: 'no-store' });
  if (!pending.has(job.id)) return;
  const now = performance.now();
  const verdict = judge(answer, now - job.heardAt);
  switch (verdict.kind) {
    case 'final':
      unfollow(job);
      report.final(job, verdict.result);
      break;
    case 'queued':
      job.heardAt = now;
      job.dueAt = now + backOff(job.misses, 250, 4_000);
      report.progress(job, answer.body);
      break;
    case 'again': {
      const delay = verdict.delay ?? backOff(job.misses, 1_000, 15_000);
      job.dueAt = now + delay;
      report.note(job, `${verdict.why} Asking again in ${about(delay / 1000)}.`);
      break;
    }
    default:
      unfollow(job);
      report.failed(job, verdict);
  }
}

/** Decides what an answer about a job means. It has no side effects. */
function judge(answer, silentMs) {
  const { status, headers, body } = answer;
  // A result is final whatever the HTTP status is.
  if (isFinal(body)) return { kind: 'final', result: body };
  if (status >= 200 && status < 300 && isObject(body)) return { kind: 'queued' };
  if (status === 404) {
    if (silentMs < UNKNOWN_AFTER_MS) return { kind: 'again', delay: 2_000, why: 'The server does not know this job yet.' };
    return failure('Job not found', 'The server no longer knows this job. Retry to send the image again.', 'upload');
  }
  const transient = status < 400 || status >= 500 || status === 429 || status === 408;
  const { title, detail } = problemText(answer);
  if (!transient) return failure(title, detail, 'upload');
  if (silentMs < GIVE_UP_AFTER_MS) return { kind: 'again', delay: retryAfter(headers), why: trouble(status) };
  return failure(title, `${detail} The job may still succeed: retry to ask for it again.`, 'resume');
}
