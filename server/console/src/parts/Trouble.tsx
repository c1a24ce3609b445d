import { useEffect, useState } from 'preact/hooks'
import type { ApiError } from '../api'
import { useText } from '../text'

export interface TroubleProps {
  error: ApiError
  onRetry?: (() => void) | undefined
  onKey?: (() => void) | undefined
}

/** What went wrong in words, and what can be done now. After "busy" the wait that the server named is counted down. */
export function Trouble({ error, onRetry, onKey }: TroubleProps) {
  const t = useText()
  const left = useCountdown(error)
  return (
    <div class="notice bad" role="alert" data-trouble={error.trouble}>
      <div>
        <strong>{t.troubles[error.trouble]}</strong>
        {error.message && <p class="detail">{error.message}</p>}
      </div>
      <div class="row">
        {error.trouble === 'key' && onKey && (
          <button type="button" onClick={onKey}>
            {t.giveKey}
          </button>
        )}
        {onRetry && (
          <button type="button" onClick={onRetry} disabled={left > 0}>
            {left > 0 ? t.tryAgainIn(left) : t.tryAgain}
          </button>
        )}
      </div>
    </div>
  )
}

function useCountdown(error: ApiError): number {
  const [left, setLeft] = useState(Math.ceil(error.retryAfterS ?? 0))
  useEffect(() => {
    setLeft(Math.ceil(error.retryAfterS ?? 0))
    const timer = setInterval(() => setLeft((before) => Math.max(0, before - 1)), 1000)
    return () => clearInterval(timer)
  }, [error])
  return left
}
