//! Which tokens of which rows are trained.

use super::*;
use crate::fixtures::byte_tokenizer;
use crate::reading::TextMarkers;
use serde_json::json;

const PAIR: &str = r#"{"prompt":[{"role":"user","content":"a"},
    {"role":"assistant","content":"b"},{"role":"user","content":"c"}],
    "chosen":"d","rejected":"ee"}"#;

fn rows(
    encoding: &Encoding,
    tokenizer: &Tokenizer,
    line: &str,
) -> Result<Vec<EncodedSequence>, RowFault> {
    let content = RowContent::Json(line.into());
    let row = encoding.sequences(tokenizer, &content, &ReadingRules::default());
    row.map(|row| row.sequences)
}

#[test]
fn a_preference_trains_only_the_last_answer_of_each_side() {
    let tokenizer = byte_tokenizer();
    let encoding = Encoding::Preferences(ChatTemplate::b158());
    let sides = rows(&encoding, &tokenizer, PAIR).unwrap();
    let trained = |EncodedSequence { dialogue: side, .. }: &EncodedSequence| {
        let both = side.ids.iter().zip(&side.trained).filter(|(_, trained)| **trained);
        both.map(|(id, _)| *id).collect::<Vec<_>>()
    };
    let eot = tokenizer.eot().unwrap();
    let byte = |text: &str| tokenizer.encode(text).unwrap()[0];
    assert_eq!(trained(&sides[0]), [byte(" "), byte("d"), eot]);
    assert_eq!(trained(&sides[1]), [byte(" "), byte("e"), byte("e"), eot]);
    let [chosen, rejected] = [&sides[0].dialogue.ids, &sides[1].dialogue.ids];
    let prompt = chosen.len() - 3;
    assert_eq!(chosen[..prompt], rejected[..prompt]);
    assert_eq!([sides[0].bytes, sides[1].bytes], [1, 2]);
}

#[test]
fn a_tokenizer_is_trained_on_the_text_of_the_messages() {
    let text = Encoding::Preferences(ChatTemplate::b158())
        .plain_text(&RowContent::Json(PAIR.into()), &ReadingRules::default());
    assert_eq!(text.unwrap(), "a\nb\nc\nd\nee");
}

#[test]
fn what_a_template_does_not_read_is_refused_by_field() {
    let tokenizer = byte_tokenizer();
    let refused = |more: &str, tools: &str| {
        let line = format!(
            r#"{{"tools":[{tools}],"messages":[{{"role":"user","content":"a"}},
            {{"role":"assistant","content":"b"{more}}}]}}"#
        );
        let encoding = Encoding::Conversations(ChatTemplate::b158());
        match rows(&encoding, &tokenizer, &line) {
            Err(RowFault::Field(error)) => error.field,
            Err(other) => panic!("{other:?}"),
            Ok(_) => "none".to_owned(),
        }
    };
    assert_eq!(refused("", ""), "none");
    assert_eq!(refused(r#","name":"n","reasoning_content":"""#, ""), "none");
    assert_eq!(refused(r#","reasoning_content":"r""#, ""), "messages.1.reasoning_content");
    assert_eq!(refused(r#","tool_calls":[{}]"#, ""), "messages.1.tool_calls");
    assert_eq!(refused("", "{}"), "tools");
}

#[test]
fn turns_that_a_template_refuses_are_put_in_order_and_counted_unless_that_is_forbidden() {
    let tokenizer = byte_tokenizer();
    let source = "{% for m in messages %}{% if m.role == 'system' or (m.role == 'user') != (loop.index0 % 2 == 0) \
        %}{{ raise_exception('order') }}{% endif %}{{ m.role }}:{{ m.content }}<|eot_id|>{% endfor %}\
        {% if add_generation_prompt %}assistant:{% endif %}";
    let template = ChatTemplate::jinja(std::path::Path::new("t.jinja"), source).unwrap();
    let encoding = Encoding::Conversations(template);
    let row = |roles: &[&str]| {
        let turn = |role: &&str| json!({"role": role, "content": "x"});
        RowContent::Json(
            json!({"messages": roles.iter().map(turn).collect::<Vec<_>>()}).to_string().into(),
        )
    };
    let encode = |roles: &[&str], strict| {
        let rules = ReadingRules { strict, ..ReadingRules::default() };
        encoding.sequences(&tokenizer, &row(roles), &rules)
    };
    let given = ["assistant", "user", "user", "assistant", "user"];
    let EncodedRow { turns, sequences, .. } = encode(&given, false).unwrap();
    assert_eq!(turns, TurnChanges { dropped: 2, merged: 1, moved: 0 });
    let text = tokenizer.decode_with_special(&sequences[0].dialogue.ids);
    assert!(text.contains("user:x\n\nx<|eot_id|>assistant:x<|eot_id|>"), "{text}");
    assert!(encode(&given, true).is_err() && encode(&given[..4], true).is_err());
    let refused = encode(&["system", "user", "assistant"], false).unwrap_err();
    assert!(format!("{refused:?}").contains("order"), "{refused:?}");
    let plain = encode(&["user", "assistant"], true).unwrap();
    assert_eq!(plain.turns, TurnChanges::default());
}

#[test]
fn ready_text_is_trained_whole_or_behind_its_markers() {
    let tokenizer = byte_tokenizer();
    let encoding = Encoding::Conversations(ChatTemplate::b158());
    let content =
        RowContent::Json(json!({"text": "U: q<|eot_id|>A: a<|eot_id|>"}).to_string().into());
    let trained = |text_markers| {
        let rules = ReadingRules { text_markers, ..ReadingRules::default() };
        let row = encoding.sequences(&tokenizer, &content, &rules)?;
        assert_eq!(row.shape, "text");
        let Dialogue { ids, trained } = &row.sequences[0].dialogue;
        let both = ids.iter().zip(trained).filter(|(_, trained)| **trained);
        let said: Vec<u32> = both.map(|(id, _)| *id).collect();
        Ok::<_, RowFault>(tokenizer.decode_with_special(&said))
    };
    assert_eq!(trained(None).unwrap(), "U: q<|eot_id|>A: a<|eot_id|>");
    let markers =
        |response: &str| Some(TextMarkers { response: response.to_owned(), instruction: None });
    assert_eq!(trained(markers("A: ")).unwrap(), "a<|eot_id|>");
    let error = format!("{:?}", trained(markers("B: ")).unwrap_err());
    assert!(error.contains("text_markers.response"), "{error}");
}

#[test]
fn columns_stand_for_fields() {
    let tokenizer = byte_tokenizer();
    let mut rules = ReadingRules::default();
    let pairs = [("instruction", "Question"), ("output", "Answer"), ("text", "body")];
    let pairs = pairs.map(|(name, column)| (name.to_owned(), column.to_owned()));
    rules.files.columns = pairs.into_iter().collect();
    let json = |text: &str| RowContent::Json(text.into());
    let text = Encoding::Text.sequences(&tokenizer, &json(r#"{"body":"ab"}"#), &rules).unwrap();
    assert_eq!((&*text.shape, text.sequences[0].bytes), ("body", 2));
    rules.files.columns.remove("text");
    let chat = Encoding::Conversations(ChatTemplate::b158());
    let asked = json(r#"{"Question":"a","Answer":"b"}"#);
    assert_eq!(chat.sequences(&tokenizer, &asked, &rules).unwrap().shape, "instruction, output");
    match chat.sequences(&tokenizer, &json(r#"{"Answer":"b"}"#), &rules) {
        Err(RowFault::Field(error)) => assert_eq!(error.field, "Question"),
        other => panic!("{other:?}"),
    }
}
