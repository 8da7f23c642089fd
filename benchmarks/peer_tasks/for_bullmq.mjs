// BullMQ. node for_bullmq.mjs work SLOTS | fill TASK COUNT | latency SAMPLES
import { execFile } from "node:child_process";
import { createRequire } from "node:module";
import { promisify } from "node:util";

const { Queue, QueueEvents, Worker } = createRequire(process.env.PEER_NODE + "/")("bullmq");
const address = new URL(process.env.PEER_REDIS);
const connection = { host: address.hostname, port: Number(address.port), maxRetriesPerRequest: null };
const run = promisify(execFile);
const [verb, ...rest] = process.argv.slice(2);
const BATCH = 500;
const WARM_UP = 20;
const seconds = () => Number(process.hrtime.bigint()) / 1e9;

if (verb === "work") {
  const work = async (job) => { if (job.name === "true") await run("/bin/true"); };
  new Worker("bench", work, { connection, concurrency: Number(rest[0]) });
} else {
  const queue = new Queue("bench", { connection });
  if (verb === "fill") {
    const began = seconds();
    for (let left = Number(rest[1]); left > 0; left -= BATCH) {
      await queue.addBulk(Array.from({ length: Math.min(BATCH, left) }, () => ({ name: rest[0], data: {} })));
    }
    console.log(JSON.stringify(seconds() - began));
  } else {
    const events = new QueueEvents("bench", { connection });
    await events.waitUntilReady();
    const times = [];
    for (let number = 0; number < Number(rest[0]) + WARM_UP; number += 1) {
      const began = seconds();
      const job = await queue.add("nothing", {});
      await job.waitUntilFinished(events);
      times.push(seconds() - began);
    }
    console.log(JSON.stringify(times.slice(WARM_UP)));
    await events.close();
  }
  await queue.close();
}
