/** The bodies of the server that this page reads; `server/wire` has them all. */

export type Task = 'math' | 'legal' | 'fact' | 'creative' | 'general'
export type Head = 'exact' | 'cheap'
export type Verdict = 'passed' | 'failed' | 'undecided'
export type Quality = 'fast' | 'balanced' | 'high' | 'full'

export const TASKS: Task[] = ['math', 'legal', 'fact', 'creative', 'general']
export const QUALITIES: Quality[] = ['fast', 'balanced', 'high', 'full']

export interface Model {
  id: string
  fenhe: {
    student: string
    path: string
    is_routed: boolean
    is_loaded: boolean
    compute_share: number
    max_context_tokens: number
    recommended_sampling: Record<string, number | null> | null
  }
}

export interface Figure {
  kept: number | null
  low: number | null
  high: number | null
}

export interface TaskFigures {
  task: string
  language: string
  head: Head
  gate: Verdict
  fidelity: Verdict
  field: Verdict
  accuracy: Figure
  information: Figure
  agreement: Figure
  perplexity_ratio_own: number | null
  perplexity_ratio_human: number | null
}

export interface PathFacts {
  name: string
  modules: string[]
  width: string | null
  exit: string
  num_exit_layers: number
  is_full: boolean
  lit: number[]
  compute_shares: Partial<Record<Head, number>>
  figures: TaskFigures[]
}

export interface StudentFacts {
  name: string
  source: string
  licence: string
  num_layers: number
  hidden_size: number
  vocab_size: number
  max_context_tokens: number
  modules: { name: string; first_layer: number; num_layers: number }[]
  paths: PathFacts[]
  precision: string
  precisions: { name: string; weight_bytes: number; heads: Head[] }[]
  files: { name: string; size_bytes: number }[]
  is_remote: boolean
}

export interface Facts {
  version: string
  students: StudentFacts[]
  has_admin: boolean
  needs_key: boolean
  cache: 'on' | 'off'
}

export interface Row {
  path: string
  head: Head
  status: string
  num_prompt_tokens: number
  num_computed_tokens: number
  num_completion_tokens: number
  max_completion_tokens: number
}

export interface LiveStudent {
  name: string
  status: 'ready' | 'loading' | 'draining' | 'unhealthy'
  variant: string
  head: Head
  error: string | null
  paths: { path: string; is_servable: boolean; is_default: boolean; num_loaded_stages: number; num_stages: number }[]
  engine: {
    num_accepted: number
    num_steps: number
    num_failed_steps: number
    num_preemptions: number
    num_prompt_tokens: number
    num_generation_tokens: number
    kv: { used_bytes: number; capacity_bytes: number }
    prefix_cache_bytes: number
    prefix_query_tokens: Record<string, number>
    prefix_hit_tokens: Record<string, number>
    stage_runs: Record<string, number>
    stage_rows: Record<string, number>
  }
  rows: Row[] | null
  num_rows: number
  num_waiting: number
  door: {
    num_running: number
    num_queued: Record<string, number>
    refusals: Record<string, number>
    drain_tokens_per_s: number | null
  }
  routed: { task: Task; path: string; head: Head; num_requests: number }[]
}

export type Decider = 'controller' | 'operator' | 'settings'

/** Whether default routing takes a path; who decided that, null for nobody yet, and why. */
export interface Standing {
  is_open: boolean
  decided_by: Decider | null
  reason: string
}

export interface OnlineTask extends Standing {
  student: string
  task: string
  path: string
  head: Head
  kept: number | null
  low: number | null
  high: number | null
  agreement: number | null
  num_samples: number
  floor: number
}

export interface Pin extends Standing {
  student: string
  task: string
  path: string
}

export interface OnlineQuality {
  mode: 'off' | 'observe' | 'act'
  held: string | null
  num_scored: number
  min_samples: number
  tasks: OnlineTask[]
  pins: Pin[]
  changes: { at: number; student: string; task: string; path: string; head: Head; action: string; reason: string }[]
}

export interface Live {
  version: string
  at_s: number
  is_draining: boolean
  num_open_requests: number
  students: LiveStudent[]
  cache: {
    is_enabled: boolean
    outcomes: Record<string, number>
    num_entries: number | null
    num_bytes: number | null
  }
  online_quality: OnlineQuality
}

export interface Route {
  student: string
  path: string
  head: Head
  task: Task
  language: string | null
  confidence: number | null
  reason: string
  probabilities: Record<Task, number> | null
  num_prompt_tokens: number
  fallbacks: { student: string; path: string; head: Head }[]
  skipped: Record<string, string>
  decision_us: number
  words?: { start: number; end: number; pull: number; task: Task }[]
}

export interface Logprob {
  token: string
  logprob: number
  bytes: number[]
  top_logprobs: { token: string; logprob: number }[]
}

export interface Usage {
  prompt_tokens: number
  completion_tokens: number
  prompt_tokens_details?: { cached_tokens: number }
  fenhe?: { compute_share: number }
}

export interface Chunk {
  choices: {
    delta: { content?: string | null }
    logprobs?: { content: Logprob[] } | null
    finish_reason?: string | null
    fenhe?: { path: string }
  }[]
  usage?: Usage | null
}

export interface PoolStudent {
  name: string
  status: string
  folder: string
  tasks: string[]
  error: string | null
  num_running: number
  num_waiting: number
}
