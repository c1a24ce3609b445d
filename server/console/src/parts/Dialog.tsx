import type { ComponentChildren } from 'preact'
import { useEffect, useId, useRef } from 'preact/hooks'

/** The browser's own modal dialog: it keeps the focus inside, Escape closes it, and focus goes back afterwards. */
export function Dialog({ title, onClose, children }: { title: string; onClose: () => void; children: ComponentChildren }) {
  const own = useRef<HTMLDialogElement>(null)
  const id = useId()
  useEffect(() => {
    own.current?.showModal()
  }, [])
  return (
    <dialog
      ref={own}
      aria-labelledby={id}
      onClose={onClose}
      onClick={(event) => {
        if (event.target === own.current) own.current?.close()
      }}
    >
      <div class="inside">
        <h2 id={id}>{title}</h2>
        {children}
      </div>
    </dialog>
  )
}
