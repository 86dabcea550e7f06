# The service without a database: it needs DATABASE_URL. compose.yaml shows it with all it stands on.
#
#   docker build -t message-pickup-repository .
#   docker run --init --read-only -p 127.0.0.1:3000:3000 -e DATABASE_URL=postgres://… \
#     -e API_KEYS="my-mediator:mediator:$(openssl rand -hex 32)" message-pickup-repository

FROM node:24-bookworm-slim AS base
WORKDIR /app
COPY package.json package-lock.json ./
# A workspace of the lock file: npm wants to see it. Nothing of it is built or run here.
COPY packages/client/package.json packages/client/

FROM base AS build
# No install script is needed to compile or to run, so none gets to run. (The compiler's binary is an optional package.)
RUN npm ci --include=dev --ignore-scripts --no-audit --no-fund
COPY tsconfig.json app.ts server.ts ./
COPY src/ src/
COPY plugins/ plugins/
COPY routes/ routes/
COPY drizzle/ drizzle/
RUN npm run build

FROM base AS dependencies
# Optional are an embedded Postgres, which a container with DATABASE_URL has no use for, and native speed-ups.
RUN npm ci --omit=dev --omit=optional --ignore-scripts --no-audit --no-fund

FROM node:24-bookworm-slim AS production
WORKDIR /app
# HOST: in a container "localhost" is reachable by nobody. So it does not start without API_KEYS or API_KEYS_FILE (or
# ALLOW_UNAUTHENTICATED=true, where who gets in is decided by the network alone).
ENV NODE_ENV=production HOST=0.0.0.0 PORT=3000
COPY package.json ./
COPY --from=dependencies /app/node_modules/ node_modules/
COPY --from=build /app/dist/ dist/
COPY drizzle/migrations/ drizzle/migrations/
# The image's user "node", by number so that Kubernetes can see that it is not root. Everything above belongs to root and
# nothing is written, so the root file system may be read-only.
USER 1000:1000
EXPOSE 3000
# /health says that the process serves; that the database answers, too, is for /ready and the load balancer. The start may
# wait 30 s for the database.
HEALTHCHECK --interval=5s --timeout=3s --start-period=40s --retries=3 \
  CMD ["node", "-e", "fetch(`http://127.0.0.1:${process.env.PORT}/health`).then(({ ok }) => process.exit(ok ? 0 : 1), () => process.exit(1))"]
# Exec form, no npm and no shell: SIGTERM reaches the service, which drains within 10 s. Give it 15 (docker stop -t 15).
STOPSIGNAL SIGTERM
CMD ["node", "--enable-source-maps", "dist/server.js"]
