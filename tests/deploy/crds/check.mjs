// Reads a JSON list of custom resources on stdin and prints what is wrong with them, a line each. Values are checked by
// the models' schemas, which pass unknown fields; the TypeScript compiler finds these in an object literal.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const MODULES = {
  "keda.sh/v1alpha1": "@kubernetes-models/keda/keda.sh/v1alpha1",
  "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
  "gateway.networking.k8s.io/v1": "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1",
};
const here = dirname(fileURLToPath(import.meta.url));
const problems = [];
const objects = JSON.parse(readFileSync(0, "utf8"));
const lines = [];

for (const [index, one] of objects.entries()) {
  const module = MODULES[one.apiVersion];
  if (module === undefined) {
    problems.push(`${one.kind} ${one.metadata.name}: no model of ${one.apiVersion}`);
    continue;
  }
  const { [one.kind]: Model } = await import(`${module}/${one.kind}`);
  try {
    new Model(one).validate();
  } catch (error) {
    problems.push(`${one.kind} ${one.metadata.name}: ${error.message}`);
  }
  lines.push(`import type { I${one.kind} as Kind${index} } from "${module}/${one.kind}";`);
  lines.push(`export const object${index}: Kind${index} = ${JSON.stringify(one)};`);
}

const scratch = mkdtempSync(join(here, "check-"));
try {
  writeFileSync(join(scratch, "objects.ts"), lines.join("\n"));
  const options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022"];
  execFileSync(process.execPath, [join(here, "node_modules/typescript/bin/tsc"), ...options, join(scratch, "objects.ts")]);
} catch (error) {
  problems.push(...String(error.stdout || error).split("\n").filter((line) => line.includes("error")));
} finally {
  rmSync(scratch, { recursive: true });
}
for (const problem of problems) console.log(problem);
