// Greets by name: http://localhost:3000/?name=kiln
import { serve } from "@hono/node-server";
import { Hono } from "hono";

const app = new Hono();
app.get("/", (context) => context.json({ greeting: `Hello, ${context.req.query("name") ?? "world"}!` }));

serve({ fetch: app.fetch, port: 3000 });
