import { useCallback, useEffect, useState } from 'preact/hooks'
import { ApiError, getJson, isAbort, onKeys, sendJson } from '../api'
import type { Live, OnlineQuality } from '../wire'

const POLL_MS = 2000
const PINS = '/admin/online-quality/pins'

export interface Place {
  student: string
  task: string
  path: string
}

/** `gone`: why the server cannot be asked now. Pinning and unpinning give what went wrong, or null. */
export interface Pins {
  quality: OnlineQuality | null
  gone: ApiError | null
  pin: (place: Place, isOpen: boolean, reason: string) => Promise<ApiError | null>
  unpin: (place: Place) => Promise<ApiError | null>
}

/** What default routing does now, asked every two seconds while the page is seen, and what overrules it. */
export function usePins(): Pins {
  const [quality, setQuality] = useState<OnlineQuality | null>(null)
  const [gone, setGone] = useState<ApiError | null>(null)
  const read = useCallback(async (signal?: AbortSignal) => {
    try {
      setQuality((await getJson<Live>('/console/state', signal ? { signal } : {})).online_quality)
      setGone(null)
    } catch (failure) {
      if (!isAbort(failure)) setGone(asApiError(failure))
    }
  }, [])
  useEffect(() => {
    const control = new AbortController()
    const poll = () => {
      if (!document.hidden) read(control.signal)
    }
    poll()
    const timer = setInterval(poll, POLL_MS)
    const forget = onKeys(poll)
    return () => {
      control.abort()
      clearInterval(timer)
      forget()
    }
  }, [read])
  const act = async (method: 'POST' | 'DELETE', path: string, body?: unknown) => {
    try {
      await sendJson(method, path, body, { admin: true })
    } catch (failure) {
      return asApiError(failure)
    }
    await read()
    return null
  }
  return {
    quality,
    gone,
    pin: (place, isOpen, reason) => act('POST', PINS, { ...place, is_open: isOpen, reason }),
    unpin: (place) => act('DELETE', `${PINS}?${new URLSearchParams({ ...place })}`),
  }
}

function asApiError(failure: unknown): ApiError {
  return failure instanceof ApiError ? failure : new ApiError('failed', String(failure))
}
