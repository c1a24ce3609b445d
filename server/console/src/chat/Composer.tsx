import { useEffect, useRef, useState } from 'preact/hooks'
import type { Attachment } from '../kept'
import { useText } from '../text'

const MOST_BYTES = 256 * 1024

export interface ComposerProps {
  isRunning: boolean
  onSend: (text: string, attachments: Attachment[]) => void
  onStop: () => void
}

export function Composer({ isRunning, onSend, onStop }: ComposerProps) {
  const t = useText()
  const [text, setText] = useState('')
  const [attachments, setAttachments] = useState<Attachment[]>([])
  const [problem, setProblem] = useState('')
  const area = useRef<HTMLTextAreaElement>(null)
  const files = useRef<HTMLInputElement>(null)
  const canSend = !isRunning && (text.trim() !== '' || attachments.length > 0)

  useEffect(() => {
    const element = area.current
    if (element === null) return
    element.style.height = 'auto'
    element.style.height = `${Math.min(element.scrollHeight, 280)}px`
  }, [text])
  useEffect(() => {
    if (!isRunning) return undefined
    const stop = (event: KeyboardEvent) => {
      if (event.key === 'Escape' && document.querySelector('dialog[open]') === null) onStop()
    }
    addEventListener('keydown', stop)
    return () => removeEventListener('keydown', stop)
  }, [isRunning, onStop])

  const submit = (event: Event) => {
    event.preventDefault()
    if (!canSend) return
    onSend(text.trim(), attachments)
    setText('')
    setAttachments([])
    setProblem('')
  }
  const attach = async (chosen: FileList | null) => {
    const problems: string[] = []
    for (const file of chosen ?? []) {
      const read = file.size > MOST_BYTES ? null : await textOf(file)
      if (read === null) problems.push(t.cannotAttach(file.name))
      else setAttachments((before) => [...before, { name: file.name, text: read }])
    }
    setProblem(problems.join(' '))
    if (files.current !== null) files.current.value = ''
    area.current?.focus()
  }

  return (
    <form
      class="composer"
      onSubmit={submit}
      onDragOver={(event) => event.preventDefault()}
      onDrop={(event) => {
        event.preventDefault()
        attach(event.dataTransfer?.files ?? null)
      }}
    >
      {(attachments.length > 0 || problem) && (
        <div class="row chips">
          {attachments.map((one, index) => (
            <span class="chip" key={index}>
              {one.name}
              <button
                type="button"
                aria-label={t.removeAttachment(one.name)}
                onClick={() => setAttachments(attachments.filter((_, other) => other !== index))}
              >
                ×
              </button>
            </span>
          ))}
          {problem && (
            <span class="bad" role="alert">
              {problem}
            </span>
          )}
        </div>
      )}
      <textarea
        ref={area}
        rows={1}
        value={text}
        aria-label={t.message}
        placeholder={t.placeholder}
        onInput={(event) => setText(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) submit(event)
        }}
      />
      <div class="row">
        <button type="button" class="quiet" onClick={() => files.current?.click()}>
          {t.attach}
        </button>
        <input
          ref={files}
          type="file"
          class="offscreen"
          tabIndex={-1}
          multiple
          aria-label={t.attach}
          accept="text/*,.md,.json,.csv,.py,.js,.ts,.toml,.yaml,.yml,.log,.tex"
          onChange={(event) => attach(event.currentTarget.files)}
        />
        <span class="soft hint">{t.composerHint}</span>
        {isRunning ? (
          <button key="stop" type="button" class="primary stop" onClick={onStop}>
            {t.stop}
          </button>
        ) : (
          <button key="send" type="submit" class="primary" disabled={!canSend}>
            {t.send}
          </button>
        )}
      </div>
    </form>
  )
}

/** Null for a file that is no text. */
async function textOf(file: File): Promise<string | null> {
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(await file.arrayBuffer())
    return text.includes('\0') ? null : text
  } catch {
    return null
  }
}
