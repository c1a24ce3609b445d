import temml from 'temml'

const STYLE = / style="[^"]*"/g

/** MathML of TeX, without what Temml would fine-tune in style attributes, which the page's policy forbids. */
export function renderMath(tex: string, isBlock: boolean): string {
  const options = { displayMode: isBlock, throwOnError: false, trust: false, maxExpand: 200 }
  return temml.renderToString(tex, options).replace(STYLE, '')
}
