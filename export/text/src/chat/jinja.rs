//! Runs untrusted Jinja templates in a sandbox.
//!
//! A template comes with a downloaded model. It gets no file loader and no environment, only a
//! conversation and the day. Six limits stop what does not terminate: source size, interpreter
//! steps, recursion depth, output size, memory and wall time. Each covers a case that the others
//! miss; the tests at the end list them.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};

use super::filters;
use super::marks::Marks;
use super::memory;
use super::methods;
use super::python;
use super::source::rewrite;
use crate::error::TextError;

/// Ten times the largest templates in use.
pub(super) const MAX_SOURCE_BYTES: usize = 128 << 10;
/// A message usually takes a few hundred.
pub(super) const MAX_STEPS: u64 = 1_000_000;
/// A macro call counts more than once.
pub(super) const MAX_DEPTH: usize = 200;
/// More text than the longest context has.
const MAX_OUTPUT_BYTES: usize = 16 << 20;
/// All values of one rendering together. Usually a few times the conversation.
const MAX_MEMORY_BYTES: usize = if cfg!(test) { 64 << 20 } else { 256 << 20 };
/// Rendering takes less than a millisecond. This catches single steps that do too much work, such
/// as replacing letters in a huge string.
const MAX_TIME: Duration = Duration::from_secs(5);
/// How often a running template is looked after.
const POLL: Duration = Duration::from_millis(20);
/// The engine evaluates long expressions and frees nested lists recursively: within the other
/// limits a template needs up to a quarter of this. Untouched stack costs no memory.
const STACK_BYTES: usize = 512 << 20;

const NAME: &str = "chat";

/// A compiled template.
#[derive(Clone)]
pub(super) struct Jinja {
    path: PathBuf,
    source: Arc<str>,
    environment: Arc<Environment<'static>>,
    marks_answers: bool,
}

/// One rendering: the messages as JSON, and the variables beside them.
#[derive(Clone, Debug)]
pub(super) struct RenderInputs {
    pub(super) messages: Vec<serde_json::Value>,
    pub(super) tools: Vec<serde_json::Value>,
    pub(super) bos: String,
    pub(super) eos: String,
    /// Names of other special tokens that the tokenizer declares, `pad_token`, with their spelling.
    pub(super) others: Vec<(String, String)>,
    pub(super) generation_prompt: bool,
    pub(super) marks: Marks,
}

impl Jinja {
    pub(super) fn new(path: &Path, source: &str) -> Result<Self, TextError> {
        let failed = |(line, what)| chat_error(path, line, what);
        if source.len() > MAX_SOURCE_BYTES {
            let got = source.len();
            let what = format!("too large; expected at most {MAX_SOURCE_BYTES} bytes, got {got}");
            return Err(failed((None, what)));
        }
        let rewritten = rewrite(source);
        let marks_answers = rewritten.contains("filter generation");
        let environment = with_limits(move || compile(rewritten)).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            source: source.into(),
            environment: Arc::new(environment),
            marks_answers,
        })
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    pub(super) fn error(&self, line: Option<usize>, what: String) -> TextError {
        chat_error(&self.path, line, what)
    }

    /// Whether the template says itself what is trained.
    pub(super) fn marks_answers(&self) -> bool {
        self.marks_answers
    }

    /// Renders several conversations, one after the other. Each may be refused; the outer error is
    /// a limit that was reached.
    pub(super) fn render(
        &self,
        inputs: Vec<RenderInputs>,
    ) -> Result<Vec<Result<String, TextError>>, TextError> {
        let environment = Arc::clone(&self.environment);
        let one = move |inputs| render(&environment, context(&inputs)).map_err(explain);
        let all = with_limits(move || Ok(inputs.into_iter().map(one).collect::<Vec<_>>()));
        let all = all.map_err(|(line, what)| self.error(line, what))?;
        let told = |(line, what)| self.error(line, what);
        Ok(all.into_iter().map(|text| text.map_err(told)).collect())
    }
}

impl fmt::Debug for Jinja {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.debug_struct("Jinja")
            .field("path", &self.path)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

pub(super) fn chat_error(path: &Path, line: Option<usize>, what: String) -> TextError {
    TextError::ChatTemplate { path: path.to_owned(), line, what }
}

/// The settings of transformers: block tags swallow the line they stand on.
fn compile(source: String) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    // Prompts are no HTML.
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_debug(true);
    environment.set_fuel(Some(MAX_STEPS));
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_unknown_method_callback(methods::call);
    filters::install(&mut environment);
    python::install(&mut environment);
    environment.add_template_owned(NAME, source)?;
    Ok(environment)
}

fn context(inputs: &RenderInputs) -> Value {
    let list = |items: &[serde_json::Value]| items.iter().map(python::from_json).collect::<Value>();
    // transformers defines these even when unused: templates test `tools is not none`.
    let tools = if inputs.tools.is_empty() { Value::from(()) } else { list(&inputs.tools) };
    let marks = [inputs.marks.open, inputs.marks.close].map(String::from);
    let others =
        inputs.others.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str())));
    Value::from_pairs(others.chain([
        ("messages", list(&inputs.messages)),
        ("tools", tools),
        ("documents", Value::from(())),
        ("add_generation_prompt", Value::from(inputs.generation_prompt)),
        ("bos_token", Value::from(inputs.bos.as_str())),
        ("eos_token", Value::from(inputs.eos.as_str())),
        (python::GENERATION_MARKS, marks.into_iter().collect()),
    ]))
}

fn render(environment: &Environment, context: Value) -> Result<String, Error> {
    let mut output = LimitedOutput(Vec::new());
    environment.get_template(NAME)?.render_captured_to(context, &mut output)?;
    String::from_utf8(output.0)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// What a template makes of some variables; the error is a description.
#[cfg(test)]
pub(super) fn rendered_with(source: &str, variables: &serde_json::Value) -> Result<String, String> {
    let environment = compile(rewrite(source)).map_err(|error| explain(error).1)?;
    render(&environment, python::from_json(variables)).map_err(|error| explain(error).1)
}

#[derive(Default)]
pub(super) struct LimitedOutput(pub(super) Vec<u8>);

impl io::Write for LimitedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other("too much output"));
        }
        self.0.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs `work` on a thread with a deep stack, for at most [`MAX_TIME`] and within
/// [`MAX_MEMORY_BYTES`]. An error is a line, where known, and a description. A thread that reaches
/// a limit is abandoned, since a thread cannot be killed: its step limit ends it, or it is parked
/// where it asked for more memory.
pub(super) fn with_limits<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, (Option<usize>, String)> {
    let (sender, receiver) = mpsc::channel();
    let budget = memory::Budget::new(MAX_MEMORY_BYTES);
    let deep = thread::Builder::new().name("chat template".to_owned()).stack_size(STACK_BYTES);
    let limited = budget.clone();
    let spawned = deep.spawn(move || {
        let result = limited.run(|| work().map_err(explain));
        drop(sender.send(result));
    });
    if let Err(error) = spawned {
        return Err((None, format!("cannot be run: {error}")));
    }
    let begin = Instant::now();
    loop {
        match receiver.recv_timeout(POLL) {
            Ok(result) => return result,
            // The thread sleeps in its allocator and will never send: only the flag tells.
            Err(mpsc::RecvTimeoutError::Timeout) if budget.is_exceeded() => {
                let most = MAX_MEMORY_BYTES >> 20;
                return Err((None, format!("takes too much memory; expected at most {most} MiB")));
            }
            Err(mpsc::RecvTimeoutError::Timeout) if begin.elapsed() < MAX_TIME => {}
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let seconds = MAX_TIME.as_secs();
                let what = format!("does not end; expected a result in {seconds} s, got none");
                return Err((None, what));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err((None, "cannot be run: the template engine panicked".to_owned()));
            }
        }
    }
}

/// The innermost cause, with its line.
pub(super) fn explain(error: Error) -> (Option<usize>, String) {
    let mut cause = &error;
    while let Some(inner) = std::error::Error::source(cause).and_then(|it| it.downcast_ref()) {
        cause = inner;
    }
    let line = cause.line().or(error.line());
    let what = match (cause.kind(), cause.detail()) {
        (ErrorKind::OutOfFuel, _) => {
            format!("does not end; expected a result in {MAX_STEPS} steps, got none")
        }
        (ErrorKind::WriteFailure, _) => {
            format!("writes too much; expected at most {MAX_OUTPUT_BYTES} bytes, got more")
        }
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    (line, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChatTemplate;
    use std::time::Instant;

    const LOOP: &str = "{% for m in messages %}{{ m.content }}{% endfor %}";

    fn refuse(source: &str) -> String {
        let begin = Instant::now();
        let error = ChatTemplate::jinja(Path::new("t.jinja"), source).unwrap_err().to_string();
        assert!(begin.elapsed() < 3 * MAX_TIME, "{:?} for {error}", begin.elapsed());
        error
    }

    fn accept(source: &str) {
        ChatTemplate::jinja(Path::new("t.jinja"), source).unwrap();
    }

    #[test]
    fn broken_templates_are_reported_with_their_line() {
        for (source, expected) in [
            ("a\n{% for m in messages %}\nb", "t.jinja:3: syntax error: "),
            ("a\n\n{{ m. }}", "t.jinja:3: syntax error: "),
            ("{{ 'x }}", "t.jinja:1: syntax error: "),
            ("{% endgeneration %}", "t.jinja:1: syntax error: "),
            ("{% no_such_tag %}", "t.jinja:1: syntax error: unknown statement"),
            ("\n{{ messages|no_such_filter }}", "t.jinja:2: unknown filter: "),
            ("\n{{ messages.no_such_method() }}", "t.jinja:2: unknown method: "),
            ("\n{{ no_such_function() }}", "t.jinja:2: unknown function: "),
            ("\n\n{{ nobody.name }}", "t.jinja:3: undefined value"),
            ("\n{{ 1 + 'a' }}", "t.jinja:2: invalid operation: "),
            ("\n{{ raise_exception('No, thanks.') }}", "t.jinja:2: invalid operation: No, thanks."),
            ("{% include 'other' %}", "t.jinja:1: template not found: "),
            ("{% extends '/etc/passwd' %}", "t.jinja:1: template not found: "),
        ] {
            let error = refuse(source);
            assert!(error.starts_with(expected), "{source}: {error}");
        }
    }

    #[test]
    fn templates_without_end_are_stopped() {
        let loops = "{% for a in range(10000) %}{% for b in range(10000) %}\
                     {% set c = a %}{% endfor %}{% endfor %}";
        let writes = format!(
            "{{% for a in range(10000) %}}{{% for b in range(10) %}}{}{{% endfor %}}{{% endfor %}}",
            "x".repeat(10_000)
        );
        for (source, expected) in [
            (loops, "does not end; expected a result in 1000000 steps, got none"),
            (&writes, "writes too much; expected at most 16777216 bytes, got more"),
            ("{% for a in range(1000000000) %}{% endfor %}", "too many elements"),
            ("{{ range(1000000000)|join }}", "too many elements"),
            ("{{ 'x' * 10000000000 }}", "repeated string is too large"),
            ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion limit exceeded"),
            ("{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursion limit exceeded"),
            ("{% include 'chat' %}", "recursion limit exceeded"),
            ("{% import 'chat' as x %}", "recursion limit exceeded"),
            ("{% extends 'chat' %}", "cycle"),
        ] {
            let error = refuse(source);
            assert!(error.contains(expected), "{source}: {error}");
        }
    }

    #[test]
    fn deep_templates_do_not_overflow_the_stack() {
        let nested = |open: &str, inner: &str, close: &str| {
            let count = (MAX_SOURCE_BYTES - 100) / (open.len() + close.len());
            open.repeat(count) + inner + &close.repeat(count)
        };
        for source in [
            format!("{{{{ {} }}}}", nested("(", "1", ")")),
            format!("{{{{ {} }}}}", nested("[", "1", "]")),
            format!("{{{{ {} }}}}", nested("{1:", "1", "}")),
            format!("{{{{ {} }}}}", nested("range(", "1", ")")),
            nested("{%if 1%}", "1", "{%endif%}"),
            nested("{%for a in b%}", "1", "{%endfor%}"),
        ] {
            let error = refuse(&source);
            assert!(error.contains("recursion limit"), "{}: {error}", &source[..20]);
        }
        // These are not nested for the parser, but are in its tree.
        for (head, open, tail) in [
            ("{{ a", "+a", " }}"),
            ("{{ 'a'", "~'a'", " }}"),
            ("{{ 1", "|d", " }}"),
            ("{{ a", ".a", " }}"),
            ("{{ ", "not ", "1 }}"),
            ("{{ ", "-", "1 }}"),
            ("{{ a", "[1]", " }}"),
            ("{{ a", "()", " }}"),
            ("{{ 1", " is odd", " }}"),
            ("{{ 1", " and 1", " }}"),
            ("{{ ", "1 if 1 else ", "1 }}"),
            ("{% if 0 %}", "{%elif 0%}", "{% endif %}"),
            ("{% set a = 1 %}", "{%set a=[a]%}", "{{ a }}"),
        ] {
            let count = (MAX_SOURCE_BYTES - 1000) / open.len();
            let source = format!("{head}{}{tail}", open.repeat(count));
            let _ = ChatTemplate::jinja(Path::new("t.jinja"), &source);
        }
    }

    #[test]
    fn deep_values_do_not_overflow_the_stack() {
        let deepen = |inner: &str, then: &str| {
            format!(
                "{{% set n = namespace(a=[]) %}}{{% for x in range(10000) %}}\
                 {{% for y in range(12) %}}{{% set n.a = {inner} %}}{{% endfor %}}{{% endfor %}}{then}"
            )
        };
        for (inner, then) in [
            ("[n.a]", "{{ n.a }}"),
            ("[n.a]", "{{ n.a|string|length }}"),
            ("[n.a]", "{{ n.a == n.a }}"),
            ("(n.a,)", "{{ n.a|pprint }}"),
            ("{'a': n.a}", "{{ n.a }}"),
            ("n.a + [1]", "{{ n.a|length }}"),
            ("n.a|map('int')", ""),
        ] {
            let _ = ChatTemplate::jinja(Path::new("t.jinja"), &(deepen(inner, then) + LOOP));
        }
        accept(&(deepen("[n.a]", "").replace("range(12)", "range(5)") + LOOP));
    }

    #[test]
    fn a_step_that_works_for_ever_is_stopped() {
        let error = refuse(
            "{% set n = namespace(a='x' * 900000) %}{% for x in range(10000) %}\
             {% set b = n.a.replace('x', 'y').replace('y', 'x').replace('x', 'y') %}{% endfor %}",
        );
        assert_eq!(error, "t.jinja: does not end; expected a result in 5 s, got none");
    }

    #[test]
    fn memory_is_bounded_in_every_kind_of_value() {
        let grow = |step: &str| {
            format!(
                "{{% set n = namespace(a='x' * 1000) %}}{{% for i in range(60) %}}{step}{{% endfor %}}"
            )
        };
        for step in [
            "{% set n.a = n.a ~ n.a %}",
            "{% set n.a = n.a + n.a %}",
            "{% set n.a = [n.a, n.a]|join %}",
            "{% set n.a = n.a.replace('x', 'xx') %}",
            "{% set a %}{{ n.a }}{{ n.a }}{% endset %}{% set n.a = a %}",
            "{% set n.a = n.a|list + n.a|list %}",
        ] {
            let error = refuse(&(grow(step) + LOOP));
            // Some are slow enough for another limit to be reached first.
            let memory = "takes too much memory; expected at most 64 MiB";
            let bounded = error.contains(memory) || error.contains("does not end");
            assert!(bounded, "{step}: {error}");
        }
    }

    #[test]
    fn a_huge_template_is_refused() {
        assert_eq!(
            refuse(&" ".repeat(MAX_SOURCE_BYTES + 1)),
            "t.jinja: too large; expected at most 131072 bytes, got 131073"
        );
    }

    #[test]
    fn what_templates_use_is_there() {
        for source in [
            "{% if tools is not none %}{{ raise_exception('tools') }}{% endif %}",
            "{% if not tools is defined or documents %}{{ raise_exception('x') }}{% endif %}",
            "{% if tools %}{{ tools | tojson(indent=4) }}{% endif %}",
            "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}",
            "{% set ns = namespace(found=false) %}{% set ns.found = true %}",
            "{% for x in [1, 2] %}{% if x == 1 %}{% continue %}{% endif %}{% break %}{% endfor %}",
            "{% for x in messages %}{{ loop.previtem is defined }}{{ loop.last }}{% endfor %}",
            "{% macro f(x, y='') %}{{ x.strip() ~ y }}{% endmacro %}{{ f(' a ', y='b') }}",
            "{{ messages[0].get('name', 'nobody').title().startswith('No') }}",
            "{{ messages[::-1]|length }}{{ messages[-1]['role'] in ['user', 'tool'] }}",
            "{{ 'a b'.split(' ')[-1].lstrip('\\n').rstrip().upper().replace('B', 'c') }}",
            "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
            "{{ messages[0].content is string and messages[0].content is not mapping }}",
            "{{ messages[0].tool_calls is defined }}{{ messages[0].nothing }}",
            "{% set a %}x{% endset %}{{ a|default('y', true)|trim|join('') }}",
            "{%- if false -%} x {%- elif true -%} y {%- else -%} z {%- endif -%}",
        ] {
            accept(&(source.to_owned() + LOOP));
        }
    }

    #[test]
    fn blocks_swallow_their_lines_as_in_transformers() {
        let source = "a\n  {% if true %}\nb\n  {% endif %}\n  {{ 'c' }}\n";
        let template = Jinja::new(Path::new("t.jinja"), source).unwrap();
        let marks = Marks::absent_from(&[]).unwrap();
        let (messages, tools) = (Vec::new(), Vec::new());
        let (bos, eos) = (String::new(), String::new());
        let others = Vec::new();
        let generation_prompt = false;
        let inputs = RenderInputs { messages, tools, bos, eos, others, generation_prompt, marks };
        let texts = template.render(vec![inputs]).unwrap();
        assert_eq!(texts[0].as_ref().unwrap(), "a\nb\n  c");
    }
}
