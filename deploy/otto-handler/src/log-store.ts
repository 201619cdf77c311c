import { Injectable } from "@nestjs/common";
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, readFileSync, truncateSync, writeSync } from "node:fs";
import { join } from "node:path";
import type { LogEntry } from "./messages";

/** The log of one worker: a file of JSON lines, in order of sequence. */
class WorkerLog {
  readonly #file: number;
  #last: number;
  ended: boolean;

  constructor(path: string) {
    const whole = existsSync(path) ? readFileSync(path, "utf8") : "";
    // A crash may have left half a line: its entry was not acknowledged, and comes again.
    const lines = whole.slice(0, whole.lastIndexOf("\n") + 1);
    if (lines.length < whole.length) truncateSync(path, Buffer.byteLength(lines));
    const entries = lines.split("\n").filter(Boolean).map((line) => JSON.parse(line));
    this.#last = entries.at(-1)?.sequence ?? 0;
    this.ended = entries.at(-1)?.end != null;
    this.#file = openSync(path, "a");
  }

  /** The highest sequence that is stored, without a hole before it. */
  get last(): number {
    return this.#last;
  }

  /**
   * Store what is new of some entries, in one write, before any of them is acknowledged. An entry that was stored before
   * is the same entry again. Returns false if one is missing before them: nothing is stored then.
   */
  append(entries: LogEntry[]): boolean {
    const fresh = entries.filter((entry) => entry.sequence > this.#last);
    if (fresh.some((entry, n) => entry.sequence !== this.#last + 1 + n)) return false;
    if (!fresh.length) return true;
    writeSync(this.#file, fresh.map((entry) => JSON.stringify(stored(entry)) + "\n").join(""));
    fsyncSync(this.#file);
    this.#last += fresh.length;
    this.ended ||= fresh.some((entry) => entry.end !== null);
    return true;
  }

  close(): void {
    closeSync(this.#file);
  }
}

function stored(entry: LogEntry) {
  const { sequence, timestamp, level, source, message, metadata, raw, end } = entry;
  // With `defaults: true` an unset `raw` is an empty Buffer, and an unset `end` is null.
  const base = { sequence, timestamp, level, source, message, metadata };
  return { ...base, ...(raw.length ? { raw: raw.toString("base64") } : {}), ...(end ? { end } : {}) };
}

/** The logs of all workers, in the folder LOG_FOLDER. A database would have the key (worker_id, sequence). */
@Injectable()
export class LogStore {
  readonly #folder = process.env.LOG_FOLDER ?? "logs";
  readonly #logs = new Map<string, WorkerLog>();

  constructor() {
    mkdirSync(this.#folder, { recursive: true });
  }

  /** The log of a worker; undefined for a name that no pod can have. */
  of(workerId: string): WorkerLog | undefined {
    // The name comes from outside, and becomes the name of a file.
    if (!/^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/.test(workerId)) return undefined;
    let log = this.#logs.get(workerId);
    if (!log) this.#logs.set(workerId, (log = new WorkerLog(join(this.#folder, `${workerId}.jsonl`))));
    return log;
  }

  onModuleDestroy(): void {
    for (const log of this.#logs.values()) log.close();
  }
}
