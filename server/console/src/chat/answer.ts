/** One answer as it streams in, and what is known of it. */

import { ApiError, isAbort, openStream } from '../api'
import type { Attachment, Settings, Turn } from '../kept'
import type { Chunk, Logprob, Usage } from '../wire'

export interface AnswerFacts {
  student: string | null
  path: string | null
  task: string | null
  confidence: number | null
  reason: string | null
  cache: string | null
  computeShare: number | null
  tokenShare: number | null
  firstMs: number | null
  tokensPerS: number | null
  numTokens: number
  numPromptTokens: number | null
  finish: string | null
  tokens?: TokenFact[]
}

export interface TokenFact {
  text: string
  p: number
  others: [string, number][]
}

export interface Progress {
  text: string
  facts: AnswerFacts
}

type Body = Record<string, unknown>

/** The body that is sent, which is also what "copy as curl" shows. */
export function bodyOf(turns: Turn[], settings: Settings): Body {
  const messages = [
    ...(settings.system.trim() ? [{ role: 'system', content: settings.system }] : []),
    ...turns.map((turn) => ({ role: turn.role, content: contentOf(turn) })),
  ]
  const fenhe: Body = {}
  if (settings.quality) fenhe.quality = settings.quality
  if (settings.cache) fenhe.cache = settings.cache === 'yes'
  const body: Body = { model: settings.model, messages }
  for (const [name, value] of [
    ['temperature', settings.temperature],
    ['top_p', settings.top_p],
    ['max_completion_tokens', settings.max_tokens],
    ['seed', settings.seed],
  ] as const) {
    if (value.trim() !== '') body[name] = Number(value)
  }
  if (settings.logprobs) Object.assign(body, { logprobs: true, top_logprobs: 4 })
  if (Object.keys(fenhe).length) body.fenhe = fenhe
  return body
}

export function contentOf(turn: Turn): string {
  return [turn.text, ...(turn.attachments ?? []).map(fenced)].filter(Boolean).join('\n\n')
}

function fenced({ name, text }: Attachment): string {
  const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((run) => run.length))
  const fence = '`'.repeat(longest + 1)
  return `${name}:\n${fence}\n${text}\n${fence}`
}

/** Streams an answer; `tell` gets it whenever there is more, at most once a frame. Throws ApiError and AbortError. */
export async function streamAnswer(body: Body, signal: AbortSignal, tell: (progress: Progress) => void): Promise<Progress> {
  const begun = performance.now()
  const whole = { ...body, stream: true, stream_options: { include_usage: true } }
  const { headers, events } = await openStream('/v1/chat/completions', whole, signal)
  const meter = new Meter(headers, begun)
  let frame = 0
  const show = () => {
    frame = 0
    tell(meter.progress())
  }
  try {
    for await (const event of events) {
      meter.add(event as Chunk)
      if (frame === 0) frame = requestAnimationFrame(show)
    }
    return meter.progress()
  } catch (error) {
    throw Object.assign(isAbort(error) ? error as Error : asApiError(error), { progress: meter.progress() })
  } finally {
    cancelAnimationFrame(frame)
  }
}

function asApiError(error: unknown): ApiError {
  return error instanceof ApiError ? error : new ApiError('failed', String(error))
}

export function progressOf(error: unknown): Progress | null {
  return (error as { progress?: Progress })?.progress ?? null
}

class Meter {
  private text = ''
  private first: number | null = null
  private last: number | null = null
  private numPieces = 0
  private usage: Usage | null = null
  private finish: string | null = null
  private tokens: TokenFact[] = []
  private path: string | null
  private readonly decoder = new TextDecoder()

  constructor(
    private readonly headers: Headers,
    private readonly begun: number,
  ) {
    this.path = headers.get('x-fenhe-path')
  }

  add(chunk: Chunk): void {
    const choice = chunk.choices[0]
    if (chunk.usage) this.usage = chunk.usage
    if (choice === undefined) return
    const piece = choice.delta.content ?? ''
    if (piece) {
      this.text += piece
      this.numPieces += 1
      this.last = performance.now()
      this.first ??= this.last
    }
    for (const one of choice.logprobs?.content ?? []) this.tokens.push(this.tokenOf(one))
    if (choice.finish_reason) this.finish = choice.finish_reason
    if (choice.fenhe) this.path = choice.fenhe.path
  }

  progress(): Progress {
    const headers = this.headers
    const numTokens = this.usage?.completion_tokens ?? Math.max(this.numPieces, this.tokens.length)
    const seconds = this.first === null || this.last === null ? 0 : (this.last - this.first) / 1000
    const confidence = headers.get('x-fenhe-confidence')
    return {
      text: this.text,
      facts: {
        student: headers.get('x-fenhe-student'),
        path: this.path,
        task: headers.get('x-fenhe-task'),
        confidence: confidence === null || Number.isNaN(Number(confidence)) ? null : Number(confidence),
        reason: headers.get('x-fenhe-reason'),
        cache: headers.get('x-fenhe-cache'),
        computeShare: this.usage?.fenhe?.compute_share ?? numberOf(headers.get('x-fenhe-compute')),
        tokenShare: numberOf(headers.get('x-fenhe-compute')),
        firstMs: this.first === null ? null : this.first - this.begun,
        tokensPerS: seconds > 0.02 && numTokens > 1 ? (numTokens - 1) / seconds : null,
        numTokens,
        numPromptTokens: this.usage?.prompt_tokens ?? null,
        finish: this.finish,
        ...(this.tokens.length ? { tokens: this.tokens.slice() } : {}),
      },
    }
  }

  /** Tokens may end within a character: its text is then that of the token that ends it. */
  private tokenOf(one: Logprob): TokenFact {
    return {
      text: this.decoder.decode(Uint8Array.from(one.bytes), { stream: true }),
      p: Math.exp(one.logprob),
      others: one.top_logprobs.map((other) => [other.token, Math.exp(other.logprob)]),
    }
  }
}

function numberOf(text: string | null): number | null {
  const number = text === null ? Number.NaN : Number.parseFloat(text)
  return Number.isNaN(number) ? null : number
}

export function asCurl(body: Body): string {
  const text = JSON.stringify(body, null, 2).replaceAll("'", `'\\''`)
  return [
    `curl ${location.origin}/v1/chat/completions \\`,
    `  -H 'content-type: application/json' \\`,
    `  -H "authorization: Bearer $FENHE_KEY" \\`,
    `  -d '${text}'`,
  ].join('\n')
}

export function asPython(body: Body): string {
  const { fenhe, ...plain } = body
  const lines = Object.entries(plain).map(([name, value]) => `    ${name}=${python(value, 4)},`)
  if (fenhe !== undefined) lines.push(`    extra_body={"fenhe": ${python(fenhe, 4)}},`)
  return [
    'import os',
    '',
    'from openai import OpenAI',
    '',
    `client = OpenAI(base_url="${location.origin}/v1", api_key=os.environ.get("FENHE_KEY", "none"))`,
    'answer = client.chat.completions.create(',
    ...lines,
    ')',
    'print(answer.choices[0].message.content)',
  ].join('\n')
}

function python(value: unknown, indent: number): string {
  const pad = ' '.repeat(indent)
  if (value === null) return 'None'
  if (value === true || value === false) return value ? 'True' : 'False'
  if (Array.isArray(value)) {
    return `[\n${value.map((one) => `${pad}    ${python(one, indent + 4)},`).join('\n')}\n${pad}]`
  }
  if (typeof value === 'object') {
    const parts = Object.entries(value as Body).map(([name, one]) => `${JSON.stringify(name)}: ${python(one, indent)}`)
    return `{${parts.join(', ')}}`
  }
  return JSON.stringify(value)
}
