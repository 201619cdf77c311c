import { Injectable, type OnApplicationShutdown } from "@nestjs/common";
import { Redis } from "ioredis";

const STREAM = process.env.REDIS_STREAM ?? "otto:scale:events";

/** Sends events. */
@Injectable()
export class EventsService implements OnApplicationShutdown {
  readonly #redis = new Redis(process.env.REDIS_URL ?? "redis://localhost:6379");

  constructor() {
    this.#redis.on("error", (error) => console.error(`Redis: ${error.message}`));
  }

  /**
   * Add one event. Give each an `event_id` of your own: after a lost answer send it again with the same one, and it is
   * still one event. Returns the entry's id.
   */
  async send(fields: Record<string, string | number | undefined>): Promise<string> {
    const set = Object.entries(fields).filter(([, value]) => value !== undefined);
    return (await this.#redis.xadd(STREAM, "*", ...set.flatMap(([name, value]) => [name, String(value)]))) ?? "";
  }

  onApplicationShutdown(): void {
    this.#redis.disconnect();
  }
}
