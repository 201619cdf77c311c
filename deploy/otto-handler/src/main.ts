import "reflect-metadata";
import { createInterface } from "node:readline";
import { Module } from "@nestjs/common";
import { NestFactory } from "@nestjs/core";
import { type MicroserviceOptions, Transport } from "@nestjs/microservices";
import { EventsService } from "./events.service";
import { LogController } from "./log.controller";
import { LogStore } from "./log-store";
import { ResultsService } from "./results.service";

@Module({ controllers: [LogController], providers: [LogStore, ResultsService, EventsService] })
class AppModule {}

async function main(): Promise<void> {
  const app = await NestFactory.createMicroservice<MicroserviceOptions>(AppModule, {
    transport: Transport.GRPC,
    options: {
      // 127.0.0.1: without TLS nothing but this machine may connect. For others set `credentials`.
      url: process.env.GRPC_URL ?? "127.0.0.1:50051",
      package: "ottoscaler.v1",
      protoPath: process.env.PROTO_PATH ?? "../../ottoscaler/proto/log_streaming.proto",
      // All numbers are below 2^53. Enums are words, and a field that is not set has its default.
      loader: { keepCase: false, longs: Number, enums: String, defaults: true, oneofs: true },
      maxReceiveMessageLength: 4 * 1024 * 1024,
      gracefulShutdown: true,
    },
    logger: ["error", "warn"],
  });
  app.enableShutdownHooks();
  await app.listen();
  console.log("ready");

  // In a real handler a request of a user leads here: each line of input is an event as JSON.
  const events = app.get(EventsService);
  createInterface({ input: process.stdin }).on("line", async (line) => {
    console.log(`sent ${await events.send(JSON.parse(line))}`);
  });
}

void main();
