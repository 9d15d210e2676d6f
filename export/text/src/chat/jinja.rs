//! Runs untrusted Jinja templates in a sandbox.
//!
//! A template comes with a downloaded model. It gets no file loader, no environment and no clock,
//! only the roles and placeholders of a conversation. Five limits stop what does not terminate:
//! source size, interpreter steps, recursion depth, output size and wall time. Each covers a case
//! that the others miss; the tests at the end list them.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::message::Role;
use super::placeholder::placeholder;
use crate::error::TextError;

/// Ten times the largest templates in use.
const MAX_SOURCE_BYTES: usize = 128 << 10;
/// A message usually takes a few hundred.
const MAX_STEPS: u64 = 1_000_000;
/// A macro call counts more than once.
const MAX_DEPTH: usize = 200;
/// Without contents: usually a few dozen bytes a message.
const MAX_OUTPUT_BYTES: usize = 16 << 20;
/// Rendering takes less than a millisecond. This catches single steps that do too much work, such
/// as replacing letters in a huge string.
const MAX_TIME: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
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
}

/// Template variables beside the messages.
#[derive(Clone, Copy)]
pub(super) struct RenderInputs<'a> {
    pub(super) bos: &'a str,
    pub(super) eos: &'a str,
    pub(super) generation_prompt: bool,
}

impl Jinja {
    pub(super) fn new(path: &Path, source: &str) -> Result<Self, TextError> {
        let failed = |(line, what)| chat_error(path, line, what);
        if source.len() > MAX_SOURCE_BYTES {
            let got = source.len();
            let what = format!("too large; expected at most {MAX_SOURCE_BYTES} bytes, got {got}");
            return Err(failed((None, what)));
        }
        let owned = source.to_owned();
        let environment = with_limits(move || compile(owned)).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            source: source.into(),
            environment: Arc::new(environment),
        })
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    pub(super) fn error(&self, line: Option<usize>, what: String) -> TextError {
        chat_error(&self.path, line, what)
    }

    /// Renders a conversation with placeholders for the contents.
    pub(super) fn render(&self, roles: &[Role], inputs: RenderInputs) -> Result<String, TextError> {
        let environment = Arc::clone(&self.environment);
        let context = context(roles, inputs);
        with_limits(move || render(&environment, context))
            .map_err(|(line, what)| self.error(line, what))
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

fn chat_error(path: &Path, line: Option<usize>, what: String) -> TextError {
    TextError::ChatTemplate { path: path.to_owned(), line, what }
}

/// The settings of transformers: block tags swallow the line they stand on.
fn compile(source: String) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_debug(true);
    environment.set_fuel(Some(MAX_STEPS));
    environment.set_recursion_limit(MAX_DEPTH);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_function("raise_exception", raise);
    environment.add_template_owned(NAME, source)?;
    Ok(environment)
}

fn raise(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn context(roles: &[Role], inputs: RenderInputs) -> Value {
    let messages = roles.iter().enumerate().map(|(index, role)| {
        let content = Value::from(placeholder(index));
        Value::from(BTreeMap::from([("role", Value::from(role.name())), ("content", content)]))
    });
    Value::from(BTreeMap::from([
        ("messages", Value::from(messages.collect::<Vec<_>>())),
        ("add_generation_prompt", Value::from(inputs.generation_prompt)),
        ("bos_token", Value::from(inputs.bos)),
        ("eos_token", Value::from(inputs.eos)),
        // transformers defines these even when unused: templates test `tools is not none`.
        ("tools", Value::from(())),
        ("documents", Value::from(())),
    ]))
}

fn render(environment: &Environment, context: Value) -> Result<String, Error> {
    let mut output = LimitedOutput(Vec::new());
    environment.get_template(NAME)?.render_captured_to(context, &mut output)?;
    String::from_utf8(output.0)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

struct LimitedOutput(Vec<u8>);

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

/// Runs `work` on a thread with a deep stack, for at most [`MAX_TIME`]. An error is a line, where
/// known, and a description. A thread that runs out of time is abandoned: it cannot be killed, but
/// its step limit ends it.
fn with_limits<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, (Option<usize>, String)> {
    let (sender, receiver) = mpsc::channel();
    let deep = thread::Builder::new().name("chat template".to_owned()).stack_size(STACK_BYTES);
    let spawned = deep.spawn(move || drop(sender.send(work().map_err(explain))));
    if let Err(error) = spawned {
        return Err((None, format!("cannot be run: {error}")));
    }
    match receiver.recv_timeout(MAX_TIME) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => {
            let seconds = MAX_TIME.as_secs();
            Err((None, format!("does not end; expected a result in {seconds} s, got none")))
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            Err((None, "cannot be run: the template engine panicked".to_owned()))
        }
    }
}

/// The innermost cause, with its line.
fn explain(error: Error) -> (Option<usize>, String) {
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
    fn broken_templates_are_told_with_their_line() {
        for (source, expected) in [
            ("a\n{% for m in messages %}\nb", "t.jinja:3: syntax error: "),
            ("a\n\n{{ m. }}", "t.jinja:3: syntax error: "),
            ("{{ 'x }}", "t.jinja:1: syntax error: "),
            ("{% generation %}x{% endgeneration %}", "t.jinja:1: syntax error: unknown statement"),
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
        assert_eq!(error, "t.jinja: does not end; expected a result in 1 s, got none");
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
        let inputs = RenderInputs { bos: "", eos: "", generation_prompt: false };
        assert_eq!(template.render(&[], inputs).unwrap(), "a\nb\n  c");
    }
}
