// The editor of scripts: CodeMirror over a textarea, which stays the field of the form.
import { closeBrackets, closeBracketsKeymap } from "@codemirror/autocomplete";
import { defaultKeymap, history, historyKeymap, indentWithTab } from "@codemirror/commands";
import {
  bracketMatching,
  HighlightStyle,
  indentOnInput,
  indentUnit,
  type StreamParser,
  StreamLanguage,
  syntaxHighlighting,
} from "@codemirror/language";
import { c, clike, cpp, java } from "@codemirror/legacy-modes/mode/clike";
import { go } from "@codemirror/legacy-modes/mode/go";
import { javascript } from "@codemirror/legacy-modes/mode/javascript";
import { lua } from "@codemirror/legacy-modes/mode/lua";
import { perl } from "@codemirror/legacy-modes/mode/perl";
import { python } from "@codemirror/legacy-modes/mode/python";
import { ruby } from "@codemirror/legacy-modes/mode/ruby";
import { rust } from "@codemirror/legacy-modes/mode/rust";
import { shell } from "@codemirror/legacy-modes/mode/shell";
import { sqlite } from "@codemirror/legacy-modes/mode/sql";
import { Compartment, EditorState, type Extension } from "@codemirror/state";
import {
  drawSelection,
  EditorView,
  highlightActiveLine,
  highlightActiveLineGutter,
  highlightSpecialChars,
  keymap,
  lineNumbers,
} from "@codemirror/view";
import { tags } from "@lezer/highlight";
import { mount } from "./islands";

const PHP_WORDS =
  "abstract as break case catch class clone const continue declare default do echo else elseif extends final finally fn for " +
  "foreach function global goto if implements include instanceof interface isset list match namespace new print private " +
  "protected public readonly require return static switch throw trait try unset use var while yield";

const php = clike({
  name: "php",
  keywords: Object.fromEntries(PHP_WORDS.split(" ").map((word) => [word, true])),
  atoms: { true: true, false: true, null: true },
  multiLineStrings: true,
});

const PARSERS: Readonly<Record<string, StreamParser<unknown>>> = {
  python,
  shell,
  node: javascript,
  ruby,
  perl,
  php,
  lua,
  sqlite,
  go,
  java,
  c,
  cpp,
  rust,
};

const COLORS = HighlightStyle.define([
  { tag: [tags.keyword, tags.controlKeyword, tags.operatorKeyword, tags.definitionKeyword], color: "var(--accent)", fontWeight: "600" },
  { tag: [tags.string, tags.special(tags.string), tags.regexp], color: "var(--good)" },
  { tag: [tags.comment, tags.meta], color: "var(--muted)", fontStyle: "italic" },
  { tag: [tags.number, tags.bool, tags.null, tags.atom], color: "var(--waiting)" },
  { tag: [tags.typeName, tags.className, tags.standard(tags.variableName)], color: "var(--active)" },
  { tag: tags.invalid, color: "var(--bad)" },
]);

const LOOK = EditorView.theme({
  "&": { backgroundColor: "var(--surface)", color: "var(--text)", height: "26rem", fontSize: "0.8125rem" },
  "&.cm-focused": { outline: "2px solid var(--accent)", outlineOffset: "-2px" },
  ".cm-scroller": { fontFamily: "var(--mono)", lineHeight: "1.55" },
  ".cm-gutters": { backgroundColor: "var(--sunken)", color: "var(--muted)", border: "0" },
  ".cm-activeLine": { backgroundColor: "color-mix(in srgb, var(--accent) 7%, transparent)" },
  ".cm-activeLineGutter": { backgroundColor: "color-mix(in srgb, var(--accent) 14%, transparent)" },
  ".cm-cursor": { borderLeftColor: "var(--text)" },
  "&.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground, .cm-selectionBackground": {
    backgroundColor: "color-mix(in srgb, var(--accent) 28%, transparent)",
  },
  "&.cm-focused .cm-matchingBracket": { backgroundColor: "color-mix(in srgb, var(--accent) 28%, transparent)" },
});

mount("editor", (place) => {
  const field = place.querySelector("textarea");
  if (!field) return;
  const languages = document.getElementById(place.dataset.languageFrom ?? "") as HTMLSelectElement | null;
  const language = new Compartment();
  // In a shadow tree, the library's styles are a constructed sheet: the page's policy allows no style elements.
  const host = document.createElement("div");
  const root = host.attachShadow({ mode: "open" });
  field.hidden = true;
  place.append(host);

  const view = new EditorView({
    root,
    parent: root,
    state: EditorState.create({
      doc: field.value,
      extensions: [
        lineNumbers(),
        highlightActiveLineGutter(),
        highlightSpecialChars(),
        history(),
        drawSelection(),
        indentOnInput(),
        bracketMatching(),
        closeBrackets(),
        highlightActiveLine(),
        EditorState.tabSize.of(4),
        indentUnit.of("    "),
        syntaxHighlighting(COLORS),
        LOOK,
        keymap.of([
          { key: "Mod-Enter", run: () => (field.form?.requestSubmit(), true) },
          ...closeBracketsKeymap,
          ...defaultKeymap.filter((binding) => binding.key !== "Mod-Enter"),
          ...historyKeymap,
          indentWithTab,
        ]),
        language.of(parserOf(languages?.value)),
        EditorView.contentAttributes.of({ "aria-label": "Script", tabindex: "0" }),
        EditorView.updateListener.of((update) => {
          if (update.docChanged) field.value = update.state.doc.toString();
        }),
      ],
    }),
  });

  const choose = (): void => view.dispatch({ effects: language.reconfigure(parserOf(languages?.value)) });
  const replace = (): void => {
    view.dispatch({ changes: { from: 0, to: view.state.doc.length, insert: field.value } });
  };
  languages?.addEventListener("change", choose);
  field.addEventListener("belljar:replaced", replace);
  return () => {
    languages?.removeEventListener("change", choose);
    field.removeEventListener("belljar:replaced", replace);
    view.destroy();
  };
});

function parserOf(name: string | undefined): Extension {
  const parser = PARSERS[name ?? ""];
  return parser ? StreamLanguage.define(parser) : [];
}
