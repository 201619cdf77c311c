import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { hostname } from "node:os";
import { Injectable, type OnApplicationBootstrap, type OnApplicationShutdown } from "@nestjs/common";
import { Redis } from "ioredis";

const STREAM = process.env.RESULT_STREAM ?? "otto:scale:results";
const GROUP = process.env.RESULT_GROUP ?? "otto-handler";
const CONSUMER = process.env.RESULT_CONSUMER ?? hostname();

type Result = Record<string, string>;
type Entry = [id: string, fields: string[] | null];

/**
 * Consumes results, each of them once. A result is known again by (event_id, kind, index), because Redis may deliver an
 * entry twice, and after a FLUSHALL a result may be published twice. The file stands for a table with that key, which
 * is written in one transaction with your own change.
 */
@Injectable()
export class ResultsService implements OnApplicationBootstrap, OnApplicationShutdown {
  // A connection of its own: a blocking read would hold up every other command on it.
  readonly #redis = new Redis(process.env.REDIS_URL ?? "redis://localhost:6379", { maxRetriesPerRequest: null });
  readonly #file = process.env.RESULT_FILE ?? "results.jsonl";
  readonly #seen = new Set<string>();
  #stopped = false;
  #running: Promise<void> = Promise.resolve();

  onApplicationBootstrap(): void {
    const lines = existsSync(this.#file) ? readFileSync(this.#file, "utf8").split("\n") : [];
    for (const line of lines.filter(Boolean)) this.#seen.add(keyOf(JSON.parse(line)));
    this.#redis.on("error", (error) => console.error(`Redis: ${error.message}`));
    this.#running = this.#run();
  }

  async onApplicationShutdown(): Promise<void> {
    this.#stopped = true;
    this.#redis.disconnect();
    await this.#running;
  }

  async #run(): Promise<void> {
    // First what was delivered before a crash and not acknowledged ("0"), then what is new (">").
    let position = "0";
    while (!this.#stopped) {
      try {
        const entries = await this.#read(position);
        if (!entries.length) position = ">";
        for (const entry of entries) await this.#take(entry);
      } catch (error) {
        if (this.#stopped) return;
        if (String(error).includes("NOGROUP")) await this.#createGroup();
        else await new Promise((resolve) => setTimeout(resolve, 1000));
        position = "0";
      }
    }
  }

  async #read(position: string): Promise<Entry[]> {
    const read = ["GROUP", GROUP, CONSUMER, "COUNT", 100, "BLOCK", 2000, "STREAMS", STREAM, position] as const;
    const reply = (await this.#redis.call("XREADGROUP", ...read)) as [string, Entry[]][] | null;
    return reply?.[0]?.[1] ?? [];
  }

  async #take([id, list]: Entry): Promise<void> {
    // null: trimmed before it was acknowledged
    if (list) {
      const result: Result = {};
      for (let n = 0; n < list.length; n += 2) result[list[n]] = list[n + 1];
      if (!this.#seen.has(keyOf(result))) {
        appendFileSync(this.#file, JSON.stringify(result) + "\n");
        this.#seen.add(keyOf(result));
      }
    }
    await this.#redis.xack(STREAM, GROUP, id); // after the change is stored, never before
  }

  async #createGroup(): Promise<void> {
    await this.#redis.xgroup("CREATE", STREAM, GROUP, "0", "MKSTREAM").catch((error: Error) => {
      if (!error.message.startsWith("BUSYGROUP")) throw error;
    });
  }
}

function keyOf(result: Result): string {
  return [result.event_id, result.kind, result.index ?? ""].join(" ");
}
