/** Requests to the server that this page came from. Keys live in this module's memory alone. */

export interface Keys {
  api: string
  admin: string
}

const keys: Keys = { api: '', admin: '' }
const listeners = new Set<() => void>()

export function currentKeys(): Readonly<Keys> {
  return keys
}

export function setKeys(next: Partial<Keys>): void {
  Object.assign(keys, next)
  for (const listener of listeners) listener()
}

export function onKeys(listener: () => void): () => void {
  listeners.add(listener)
  return () => listeners.delete(listener)
}

export type Trouble = 'gone' | 'busy' | 'key' | 'forbidden' | 'refused' | 'failed'

/** What went wrong, by kind, with the server's own sentence where it gave one. */
export class ApiError extends Error {
  constructor(
    readonly trouble: Trouble,
    message: string,
    readonly status: number | null = null,
    readonly retryAfterS: number | null = null,
    readonly code: string | null = null,
  ) {
    super(message)
  }
}

export async function getJson<T>(path: string, options: { admin?: boolean; signal?: AbortSignal } = {}): Promise<T> {
  const response = await ask(path, { method: 'GET', signal: options.signal }, options.admin)
  return (await response.json()) as T
}

export async function sendJson<T>(
  method: 'POST' | 'DELETE',
  path: string,
  body: unknown,
  options: { admin?: boolean; signal?: AbortSignal } = {},
): Promise<T> {
  const response = await ask(path, jsonRequest(method, body, options.signal), options.admin)
  return (await response.json()) as T
}

export interface Stream {
  headers: Headers
  events: AsyncGenerator<unknown>
}

/** A stream of server-sent events, each decoded. Throws ApiError, also for an error inside the stream. */
export async function openStream(path: string, body: unknown, signal: AbortSignal): Promise<Stream> {
  const response = await ask(path, jsonRequest('POST', body, signal))
  if (response.body === null) throw new ApiError('failed', 'the answer has no body')
  return { headers: response.headers, events: readEvents(response.body) }
}

function jsonRequest(method: string, body: unknown, signal?: AbortSignal): RequestInit {
  if (body === undefined) return { method, signal }
  return { method, signal, body: JSON.stringify(body), headers: { 'content-type': 'application/json' } }
}

async function ask(path: string, init: RequestInit, isAdmin = false): Promise<Response> {
  const key = isAdmin ? keys.admin : keys.api
  const headers = new Headers(init.headers)
  if (key) headers.set('authorization', `Bearer ${key}`)
  let response: Response
  try {
    response = await fetch(path, { ...init, headers, credentials: 'omit', cache: 'no-store' })
  } catch (error) {
    if (isAbort(error)) throw error
    throw new ApiError('gone', '')
  }
  if (!response.ok) throw await errorOf(response)
  return response
}

async function errorOf(response: Response): Promise<ApiError> {
  const body = await response.json().catch(() => null)
  const told = body?.error
  const wait = Number(response.headers.get('retry-after-ms')) / 1000 || Number(response.headers.get('retry-after'))
  const message = typeof told?.message === 'string' ? told.message : `HTTP ${response.status}`
  return new ApiError(troubleOf(response.status), message, response.status, wait || null, told?.code ?? null)
}

function troubleOf(status: number): Trouble {
  if (status === 401) return 'key'
  if (status === 403) return 'forbidden'
  if (status === 429 || status === 503) return 'busy'
  return status >= 500 ? 'failed' : 'refused'
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === 'AbortError'
}

async function* readEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<unknown> {
  const reader = body.getReader()
  const decoder = new TextDecoder()
  let rest = ''
  let isDone = false
  try {
    while (true) {
      const { value, done } = await reader.read().catch((error) => {
        if (isAbort(error)) throw error
        throw new ApiError('gone', '')
      })
      rest += decoder.decode(value, { stream: !done })
      const frames = rest.split('\n\n')
      rest = frames.pop() ?? ''
      for (const frame of frames) {
        const data = dataOf(frame)
        if (data === null) continue
        if (data === '[DONE]') {
          isDone = true
          return
        }
        const event = JSON.parse(data)
        if (event.error) throw new ApiError('failed', String(event.error.message), null, null, event.error.code)
        yield event
      }
      if (done) break
    }
    if (!isDone) throw new ApiError('gone', '')
  } finally {
    reader.cancel().catch(() => undefined)
  }
}

function dataOf(frame: string): string | null {
  const lines = frame.split('\n').filter((line) => line.startsWith('data:'))
  return lines.length ? lines.map((line) => line.slice(5).trimStart()).join('\n') : null
}
