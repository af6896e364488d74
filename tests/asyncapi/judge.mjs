// Prints what the official parser says of an AsyncAPI document, as JSON: node judge.mjs MODULES DOCUMENT
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const [modules, document] = process.argv.slice(2);
const { Parser } = createRequire(`${modules}/`)("@asyncapi/parser");
const { document: parsed, diagnostics } = await new Parser().parse(readFileSync(document, "utf8"), { source: document });
console.log(
  JSON.stringify({
    operations: parsed?.operations().all().map((operation) => operation.id()) ?? null,
    diagnostics: diagnostics.map(({ severity, code, message, path }) => ({ severity, code, message, at: path.join("/") })),
  }),
);
