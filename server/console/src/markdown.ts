/** Markdown of a model's answer as HTML that can do nothing: HTML in it stays text, and DOMPurify has the last word. */

import DOMPurify from 'dompurify'
import { Marked, type Token, type TokensList } from 'marked'

type MathRenderer = (tex: string, isBlock: boolean) => string

let renderMath: MathRenderer | null = null
let isMathWanted = false
const waiting = new Set<() => void>()

const TAGS = ['p', 'br', 'strong', 'em', 'del', 'code', 'pre', 'ul', 'ol', 'li', 'blockquote', 'h3', 'h4', 'h5', 'h6']
const TABLE = ['table', 'thead', 'tbody', 'tr', 'th', 'td', 'hr', 'a', 'span', 'div']
const MATHML = [
  'math', 'mrow', 'mi', 'mn', 'mo', 'ms', 'mtext', 'mspace', 'mfrac', 'msqrt', 'mroot', 'mstyle', 'msub', 'msup',
  'msubsup', 'munder', 'mover', 'munderover', 'mmultiscripts', 'mprescripts', 'mtable', 'mtr', 'mtd', 'mpadded',
  'mphantom', 'menclose', 'merror',
]
const ATTRIBUTES = [
  'href', 'title', 'start', 'align', 'class', 'target', 'rel', 'display', 'mathvariant', 'stretchy', 'fence',
  'separator', 'lspace', 'rspace', 'minsize', 'maxsize', 'accent', 'accentunder', 'columnalign', 'linethickness',
  'width', 'height', 'depth', 'scriptlevel', 'displaystyle', 'movablelimits', 'form', 'largeop', 'symmetric',
]

DOMPurify.addHook('afterSanitizeAttributes', (node) => {
  if (node.tagName !== 'A') return
  node.setAttribute('target', '_blank')
  node.setAttribute('rel', 'noopener noreferrer nofollow')
})

const marked = new Marked({ gfm: true })

marked.use({
  renderer: {
    html: ({ text }) => escape(text),
    // An image would be fetched from wherever the model says: a way to leak what was asked.
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 2)
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`
    },
    checkbox: ({ checked }) => (checked ? '☑ ' : '☐ '),
  },
  extensions: [
    mathRule('blockMath', 'block', /^(?:\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\])(?:\n|$)/, /\$\$|\\\[/),
    mathRule('inlineMath', 'inline', /^(?:\$\$([^$]+?)\$\$|\$(?![\s$])((?:\\\$|[^$\n])+?)(?<![\s\\])\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\])/, /\$|\\[([]/),
  ],
})

function mathRule(name: string, level: 'block' | 'inline', rule: RegExp, start: RegExp) {
  return {
    name,
    level,
    start: (source: string) => {
      const at = source.search(start)
      return at < 0 ? undefined : at
    },
    tokenizer(source: string) {
      const match = rule.exec(source)
      if (match === null) return undefined
      const tex = match.slice(1).find((part) => part !== undefined) ?? ''
      return { type: name, raw: match[0], tex: tex.trim() }
    },
    renderer: (token: { tex?: string }) => mathOf(token.tex ?? '', level === 'block'),
  }
}

function mathOf(tex: string, isBlock: boolean): string {
  if (renderMath === null) {
    loadMath()
    return `<code class="tex">${escape(tex)}</code>`
  }
  const math = renderMath(tex, isBlock)
  return isBlock ? `<div class="formula">${math}</div>` : math
}

/** Formulas are MathML, which browsers draw themselves; what makes it of TeX is fetched when the first one is seen. */
function loadMath(): void {
  if (isMathWanted) return
  isMathWanted = true
  import('./math').then(
    (module) => {
      renderMath = module.renderMath
      for (const tell of waiting) tell()
    },
    () => {
      isMathWanted = false
    },
  )
}

export function onMath(tell: () => void): () => void {
  waiting.add(tell)
  return () => {
    waiting.delete(tell)
  }
}

export function hasMath(): boolean {
  return renderMath !== null
}

export function blocksOf(text: string): TokensList {
  return marked.lexer(text)
}

/** The type is a text to Preact, and a TrustedHTML to the browser, which takes nothing else. */
export function htmlOf(token: Token): string {
  const clean = DOMPurify.sanitize(marked.parser([token]), {
    ALLOWED_TAGS: [...TAGS, ...TABLE, ...MATHML],
    ALLOWED_ATTR: ATTRIBUTES,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
    RETURN_TRUSTED_TYPE: true,
  })
  return clean as unknown as string
}

function escape(text: string): string {
  return text.replace(/[&<>"']/g, (mark) => `&#${mark.charCodeAt(0)};`)
}
