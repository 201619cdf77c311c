import { randomUUID } from "node:crypto";
import { status, type ServerDuplexStream } from "@grpc/grpc-js";
import { Controller } from "@nestjs/common";
import { GrpcMethod, GrpcStreamCall } from "@nestjs/microservices";
import { LogStore } from "./log-store";
import type { LogBatch, LogEntry, LogResponse, RegistrationResponse, WorkerRegistration } from "./messages";

const SERVICE = "LogStreamingService";
/** Far below the 4 MiB that a gRPC server receives. */
const MAX_MESSAGE = 1024 * 1024;

type Call<Message> = ServerDuplexStream<Message, LogResponse>;

@Controller()
export class LogController {
  constructor(private readonly store: LogStore) {}

  @GrpcMethod(SERVICE, "RegisterWorker")
  register({ workerId }: WorkerRegistration): RegistrationResponse {
    const log = this.store.of(workerId);
    if (!log) return { status: "INVALID_REQUEST", message: `${JSON.stringify(workerId)} is not the name of a pod` };
    return {
      status: log.last ? "ALREADY_REGISTERED" : "SUCCESS",
      sessionId: randomUUID(),
      // rateLimit 0: no limit. Batches carry about ten times the lines per second.
      config: { rateLimit: 0, bufferSize: 5000, maxMessageSize: MAX_MESSAGE, includeMetadata: false, maxBatch: 500 },
      // Sending goes on after it, so a restart neither loses nor doubles a line.
      lastSequence: log.last,
    };
  }

  @GrpcStreamCall(SERVICE, "StreamLogs")
  entries(call: Call<LogEntry>): void {
    this.#receive(call, (entry) => [entry]);
  }

  @GrpcStreamCall(SERVICE, "StreamLogBatches")
  batches(call: Call<LogBatch>): void {
    this.#receive(call, (batch) => batch.entries);
  }

  /**
   * The raw call, because only it has back-pressure: the next message is read after the last one was stored and its
   * answer was taken. With @GrpcStreamMethod all messages would be in memory at once.
   */
  #receive<Message>(call: Call<Message>, entriesOf: (message: Message) => LogEntry[]): void {
    // Without a listener an error of the stream, such as a cut connection, would end the process.
    call.on("error", () => call.end());
    call.on("end", () => call.end()); // the sender will come back if the entry with `end` was not acknowledged
    call.on("data", (message: Message) => {
      call.pause();
      const response = this.#stored(entriesOf(message));
      if (!response) {
        call.emit("error", { code: status.FAILED_PRECONDITION, details: "entries are missing: register again" });
      } else if (call.write(response)) {
        call.resume();
      } else {
        call.once("drain", () => call.resume());
      }
    });
  }

  /** One cumulative acknowledgement, after the entries are stored; undefined where entries before them are missing. */
  #stored(entries: LogEntry[]): LogResponse | undefined {
    const first = entries[0];
    const log = first && this.store.of(first.workerId);
    return log?.append(entries) ? { status: "ACK", sequence: log.last } : undefined;
  }
}
