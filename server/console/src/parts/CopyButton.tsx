import { useState } from 'preact/hooks'
import { useText } from '../text'

export function CopyButton({ text, label }: { text: string | (() => string); label?: string }) {
  const t = useText()
  const [state, setState] = useState<'idle' | 'done' | 'failed'>('idle')
  const copy = async () => {
    const isDone = await copyText(typeof text === 'function' ? text() : text)
    setState(isDone ? 'done' : 'failed')
    setTimeout(() => setState('idle'), 1600)
  }
  const words = { idle: label ?? t.copy, done: t.copied, failed: t.notCopied }
  return (
    <button type="button" class="quiet" onClick={copy} aria-live="polite">
      {words[state]}
    </button>
  )
}

/** Pages that came over plain HTTP from another machine have no clipboard of the new kind. */
export async function copyText(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text)
    return true
  } catch {
    const area = document.createElement('textarea')
    area.value = text
    area.setAttribute('aria-hidden', 'true')
    area.className = 'offscreen'
    document.body.append(area)
    area.select()
    const isDone = document.execCommand('copy')
    area.remove()
    return isDone
  }
}
