//! Writes an answer as a response of `/v1/responses`, whole or as its events.

use serde_json::{Map, Value, json};

use super::answer::{StreamEvent, StreamFormat};
use super::answer_parts::{AnswerPart, AnswerParts, ToolCall, whole};
use super::error::ApiError;
use super::state::{AnswerRequest, AppState, now};
use super::tool_form::ToolForm;
use crate::inference::{EndReason, JobEnd, JobEvent, RequestId};

/// A response in the making.
pub(crate) struct ResponseFormat {
    number: u64,
    created: u64,
    model: String,
    temperature: f32,
    top_p: f32,
    max_tokens: Option<usize>,
    prompt: usize,
    /// Fields of the request that the response repeats.
    echo: Map<String, Value>,
    /// How calls are written, if there may be some.
    form: Option<ToolForm>,
    parts: AnswerParts,
    items: Vec<OutputItem>,
    /// Whether the last item may still grow.
    open: bool,
    /// Whether the last item is where the answer was cut, if it was.
    half: bool,
    events: u64,
    ended: Option<JobEnd>,
}

/// A part of the output.
enum OutputItem {
    Message(String),
    Call(ToolCall),
}

impl ResponseFormat {
    pub(crate) fn new(
        state: &AppState,
        request: RequestId,
        question: &AnswerRequest,
        echo: Map<String, Value>,
    ) -> Self {
        Self {
            number: request.number(),
            created: now(),
            model: state.model.clone(),
            temperature: question.settings.sampler.temperature,
            top_p: question.settings.sampler.top_p,
            max_tokens: question.max_tokens,
            prompt: question.prompts.iter().map(|prompt| prompt.len()).sum(),
            echo,
            form: question.calls,
            parts: AnswerParts::new(question.calls),
            items: Vec::new(),
            open: false,
            half: false,
            events: 0,
            ended: None,
        }
    }

    /// Takes the text of a whole answer.
    pub(crate) fn take_whole(&mut self, text: &str) {
        let (said, calls) = whole(self.form, text);
        let message = (!said.is_empty() || calls.is_empty()).then_some(OutputItem::Message(said));
        // Only calls that are complete are items.
        self.half = calls.is_empty();
        self.items.extend(message.into_iter().chain(calls.into_iter().map(OutputItem::Call)));
    }

    /// An item of the output.
    fn item(&self, index: usize, status: &str) -> Value {
        let number = self.number;
        match &self.items[index] {
            OutputItem::Message(text) => {
                // An item that begins has no part yet.
                let parts = if status == "in_progress" { json!([]) } else { json!([part(text)]) };
                json!({
                    "type": "message", "id": self.item_id(index), "status": status,
                    "role": "assistant", "content": parts,
                })
            }
            OutputItem::Call(call) => json!({
                "type": "function_call", "id": self.item_id(index), "status": status,
                "call_id": format!("call_{number}_{index}"), "name": call.name,
                "arguments": call.arguments,
            }),
        }
    }

    fn item_id(&self, index: usize) -> String {
        let kind = match &self.items[index] {
            OutputItem::Message(_) => "msg",
            OutputItem::Call(_) => "fc",
        };
        format!("{kind}_{}_{index}", self.number)
    }

    /// The response, in progress without an end.
    pub(crate) fn response(&self, end: Option<&JobEnd>) -> Value {
        let cut = end.is_some_and(|end| end.reason == EndReason::Length);
        let status = match end {
            None => "in_progress",
            Some(_) if cut => "incomplete",
            Some(_) => "completed",
        };
        // While it is in progress the items come as events of their own.
        let count = end.map_or(0, |_| self.items.len());
        // An answer is cut in its last item at most; the others were complete before.
        let is_cut = |index| cut && self.half && index + 1 == count;
        let status_of = |index| if is_cut(index) { "incomplete" } else { "completed" };
        let output: Vec<Value> =
            (0..count).map(|index| self.item(index, status_of(index))).collect();
        let mut response = json!({
            "id": format!("resp_{}", self.number), "object": "response", "created_at": self.created,
            "status": status, "error": null, "model": self.model,
            "incomplete_details": cut.then(|| json!({"reason": "max_output_tokens"})),
            "instructions": null, "max_output_tokens": self.max_tokens, "output": output,
            "parallel_tool_calls": false, "previous_response_id": null, "store": false,
            "temperature": self.temperature, "top_p": self.top_p, "tool_choice": "auto", "tools": [],
            "truncation": "disabled", "metadata": {},
            "usage": end.map(|end| self.usage(end)),
        });
        for (field, value) in &self.echo {
            response[field] = value.clone();
        }
        response
    }

    fn usage(&self, end: &JobEnd) -> Value {
        json!({
            "input_tokens": self.prompt, "input_tokens_details": {"cached_tokens": end.cached},
            "output_tokens": end.generated, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt + end.generated,
        })
    }

    /// An event with its name and number.
    fn event(&mut self, name: &'static str, mut data: Value) -> StreamEvent {
        data["type"] = name.into();
        data["sequence_number"] = self.events.into();
        self.events += 1;
        StreamEvent { name: Some(name), data: data.to_string() }
    }

    /// An event about the last item; those of text are about its only part.
    fn item_event(&mut self, name: &'static str, field: &str, value: Value) -> StreamEvent {
        let index = self.items.len() - 1;
        let mut data = json!({"item_id": self.item_id(index), "output_index": index});
        if let OutputItem::Message(_) = self.items[index] {
            // A message has one part here, and calls have none.
            data["content_index"] = 0.into();
        }
        if name.ends_with("text.delta") || name.ends_with("text.done") {
            data["logprobs"] = json!([]);
        }
        data[field] = value;
        self.event(name, data)
    }

    fn begin_item(&mut self, item: OutputItem) -> Vec<StreamEvent> {
        self.items.push(item);
        self.open = true;
        let index = self.items.len() - 1;
        let added = json!({"output_index": index, "item": self.item(index, "in_progress")});
        let mut events = vec![self.event("response.output_item.added", added)];
        if let OutputItem::Message(_) = self.items[index] {
            events.push(self.item_event("response.content_part.added", "part", part("")));
        }
        events
    }

    /// Says that the last item is complete, if there is one that is not.
    fn end_item(&mut self, status: &str) -> Vec<StreamEvent> {
        if !std::mem::take(&mut self.open) {
            return Vec::new();
        }
        self.half = status == "incomplete";
        let index = self.items.len() - 1;
        let mut events = match &self.items[index] {
            OutputItem::Message(text) => {
                let (text, part) = (text.clone(), part(text));
                vec![
                    self.item_event("response.output_text.done", "text", text.into()),
                    self.item_event("response.content_part.done", "part", part),
                ]
            }
            OutputItem::Call(call) => {
                let arguments = call.arguments.clone().into();
                let name = "response.function_call_arguments.done";
                vec![self.item_event(name, "arguments", arguments)]
            }
        };
        let done = json!({"output_index": index, "item": self.item(index, status)});
        events.push(self.event("response.output_item.done", done));
        events
    }

    fn take(&mut self, part: AnswerPart) -> Vec<StreamEvent> {
        match part {
            AnswerPart::Text(text) => {
                let mut events = Vec::new();
                if !self.open {
                    events = self.begin_item(OutputItem::Message(String::new()));
                }
                if let Some(OutputItem::Message(said)) = self.items.last_mut() {
                    *said += &text;
                }
                events.push(self.item_event("response.output_text.delta", "delta", text.into()));
                events
            }
            AnswerPart::CallBegins(name) => {
                let mut events = self.end_item("completed");
                let call = ToolCall { name, arguments: String::new() };
                events.extend(self.begin_item(OutputItem::Call(call)));
                events
            }
            AnswerPart::Arguments(piece) => {
                if let Some(OutputItem::Call(call)) = self.items.last_mut() {
                    call.arguments += &piece;
                }
                let name = "response.function_call_arguments.delta";
                vec![self.item_event(name, "delta", piece.into())]
            }
            AnswerPart::CallEnds => self.end_item("completed"),
        }
    }
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

impl StreamFormat for ResponseFormat {
    fn begin(&mut self) -> Vec<StreamEvent> {
        let response = json!({"response": self.response(None)});
        vec![
            self.event("response.created", response.clone()),
            self.event("response.in_progress", response),
        ]
    }

    fn next(&mut self, _: usize, event: JobEvent) -> Vec<StreamEvent> {
        let parts = match event {
            JobEvent::Token { text, .. } => self.parts.push(&text),
            JobEvent::End(end) => {
                let parts = self.parts.finish(&end.text);
                self.ended = Some(end);
                parts
            }
            JobEvent::Prompt(_) | JobEvent::Failed => Vec::new(),
        };
        parts.into_iter().flat_map(|part| self.take(part)).collect()
    }

    fn end(&mut self) -> Vec<StreamEvent> {
        let mut events = Vec::new();
        // A response has at least one item, also where the model said nothing.
        if self.items.is_empty() {
            events = self.begin_item(OutputItem::Message(String::new()));
        }
        let ended = self.ended.take();
        let cut = ended.as_ref().is_some_and(|end| end.reason == EndReason::Length);
        let (status, last) = if cut {
            ("incomplete", "response.incomplete")
        } else {
            ("completed", "response.completed")
        };
        events.extend(self.end_item(status));
        let response = self.response(ended.as_ref());
        events.push(self.event(last, json!({"response": response})));
        events
    }

    fn fail(&mut self, error: &ApiError) -> Vec<StreamEvent> {
        let data = json!({"code": error.code, "message": error.message, "param": null});
        vec![self.event("error", data)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tool_form::sample_call;

    fn format(form: Option<ToolForm>) -> ResponseFormat {
        ResponseFormat {
            number: 1,
            created: 0,
            model: "m".to_owned(),
            temperature: 0.0,
            top_p: 1.0,
            max_tokens: None,
            prompt: 1,
            echo: Map::new(),
            form,
            parts: AnswerParts::new(form),
            items: Vec::new(),
            open: false,
            half: false,
            events: 0,
            ended: None,
        }
    }

    fn end(text: &str) -> JobEnd {
        let (stop_text, text) = (None, text.to_owned());
        JobEnd { reason: EndReason::Length, stop_text, text, cached: 0, generated: 1 }
    }

    /// The status of the response and of each item, as the last event of a stream has them.
    fn statuses(response: &Value) -> Vec<String> {
        let items = response["output"].as_array().unwrap();
        let all = [response].into_iter().chain(items);
        all.map(|it| it["status"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_cut_answer_is_incomplete_in_its_last_item_alone() {
        let (form, call) = sample_call("look", "{\"a\": 1}");
        let half = &call[..call.find('1').unwrap()];
        for (text, expected) in [
            (format!("see {call}"), vec!["incomplete", "completed", "completed"]),
            (
                format!("see {call}{half}"),
                vec!["incomplete", "completed", "completed", "incomplete"],
            ),
            ("see".to_owned(), vec!["incomplete", "incomplete"]),
            (String::new(), vec!["incomplete", "incomplete"]),
        ] {
            let mut stream = format(Some(form));
            let mut events = stream.next(0, JobEvent::End(end(&text)));
            events.extend(stream.end());
            let data: Vec<Value> =
                events.iter().map(|it| serde_json::from_str(&it.data).unwrap()).collect();
            assert_eq!(statuses(&data.last().unwrap()["response"]), expected, "{text}");
            // Each item ends as it was said to end when it did.
            let done = data.iter().filter(|it| it["type"] == "response.output_item.done");
            let done: Vec<&str> = done.map(|it| it["item"]["status"].as_str().unwrap()).collect();
            assert_eq!(done, expected[1..], "{text}");
        }
        let mut whole = format(Some(form));
        whole.take_whole(&format!("see {call}"));
        assert_eq!(statuses(&whole.response(Some(&end(""))))[1..], ["completed", "completed"]);
        let mut whole = format(Some(form));
        whole.take_whole("see");
        assert_eq!(statuses(&whole.response(Some(&end(""))))[1..], ["incomplete"]);
    }
}
