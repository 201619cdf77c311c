/** The messages of log_streaming.proto as the loader options in main.ts give them. */

export interface LogEntry {
  workerId: string;
  taskId: string;
  timestamp: string;
  level: string;
  source: string;
  message: string;
  metadata: Record<string, string>;
  sequence: number;
  raw: Buffer;
  end: { lines: number; bytes: number; dropped: number; gaps: number } | null;
}

export interface LogBatch {
  entries: LogEntry[];
}

export interface LogResponse {
  status: "ACK" | "RETRY" | "DROP";
  message?: string;
  sequence: number;
}

export interface WorkerRegistration {
  workerId: string;
  taskId: string;
}

export interface RegistrationResponse {
  status: "SUCCESS" | "ALREADY_REGISTERED" | "SERVER_FULL" | "INVALID_REQUEST";
  message?: string;
  sessionId?: string;
  config?: { rateLimit: number; bufferSize: number; maxMessageSize: number; includeMetadata: boolean; maxBatch: number };
  lastSequence?: number;
}
