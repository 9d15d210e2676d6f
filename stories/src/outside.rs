//! Questions about the world outside the stories, whose only right answer is that one does not know.
//! Training draws them from forms with words in them; the held-out ones share no form with those.

use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use crate::item::QuestionAnswer;

/// The answer to all of them.
const ANSWER: &str = "I do not know.";

/// The question of that number that no training asks, with its answer; there are
/// [`OUTSIDE_QUESTIONS`].
pub(crate) fn held_out_question(number: usize) -> Option<QuestionAnswer> {
    HELD_OUT.get(number).map(|question| unknown((*question).to_owned()))
}

/// How many questions about the outside world are held out.
pub const OUTSIDE_QUESTIONS: usize = HELD_OUT.len();

/// A question that training may ask.
pub(crate) fn trained_question(rng: &mut ChaCha8Rng) -> QuestionAnswer {
    let form = *FORMS.choose(rng).expect("there are forms");
    unknown(filled(form, rng))
}

fn unknown(question: String) -> QuestionAnswer {
    QuestionAnswer { question, answer: ANSWER.to_owned() }
}

/// The form with a word in each of its places, `<kind>`.
fn filled(form: &str, rng: &mut ChaCha8Rng) -> String {
    let mut parts = form.split(['<', '>']);
    let mut text = parts.next().unwrap_or_default().to_owned();
    // Behind the first part, kinds and plain text take turns.
    while let Some(kind) = parts.next() {
        let (_, words) = WORDS.iter().find(|(known, _)| *known == kind).expect("a known kind");
        let words: Vec<&str> = words.split(", ").collect();
        text += words.choose(rng).expect("each kind has words");
        text += parts.next().unwrap_or_default();
    }
    text
}

/// The forms that training knows.
const FORMS: &[&str] = &[
    "What is the capital of <country>?",
    "What language do people speak in <country>?",
    "Who is the president of <country>?",
    "Is <country> bigger than <country>?",
    "What do people eat in <country>?",
    "How many people live in <city>?",
    "How far is it from <city> to <city>?",
    "What is the weather like in <city>?",
    "What time is it in <city>?",
    "Where is <city>?",
    "Where is <country>?",
    "How do I get to <city>?",
    "How many legs does a <animal> have?",
    "What does a <animal> eat?",
    "How fast can a <animal> run?",
    "What colour is a <animal>?",
    "Why do <animal>s sleep at night?",
    "Who would win, a <animal> or a <animal>?",
    "How do you cook <food>?",
    "What is <food> made of?",
    "Do you like <food>?",
    "How much does <food> cost?",
    "Is <food> good for me?",
    "What colour is <food>?",
    "Where does <food> come from?",
    "What does a <job> do?",
    "How can I become a <job>?",
    "Who was the first <job>?",
    "Was your father a <job>?",
    "Where did the <job> go?",
    "What is <number> plus <number>?",
    "What is <number> times <number>?",
    "Is <number> more than <number>?",
    "Can you count to <number>?",
    "What is <topic>?",
    "Can you explain <topic>?",
    "Tell me about <topic>.",
    "Why is <topic> important?",
    "Where can I learn <topic>?",
    "Who invented the <machine>?",
    "How does a <machine> work?",
    "When was the <machine> made?",
    "Where can I buy a <machine>?",
    "Who had the first <machine>?",
    "My <machine> is broken. What should I do?",
    "Where was <famous> born?",
    "When did <famous> die?",
    "Who was <famous>?",
    "What did <famous> write?",
    "Did <famous> ever meet <famous>?",
    "Write a poem about <topic>.",
    "Tell me a joke about a <animal>.",
    "Sing a song about <country>.",
    "Translate <food> into French.",
    "Can you <act>?",
    "Will you <act> with me?",
    "Should I <act> today?",
    "Why do people <act>?",
    "Hello! How are you?",
    "Who are you?",
    "How old are you?",
    "What can you do?",
    "Do you have a name?",
    "Good morning!",
    "Thank you very much.",
];

/// What may stand in the places of the forms.
const WORDS: &[(&str, &str)] = &[
    (
        "country",
        "France, Spain, Italy, Japan, China, India, Brazil, Egypt, Canada, Mexico, Poland, \
         Norway, Sweden, Kenya, Chile, Greece, Turkey, Ireland, Vietnam, Peru, Russia, Cuba, \
         Iran, Nepal, Morocco, Austria",
    ),
    (
        "city",
        "London, Berlin, Madrid, Rome, Tokyo, Cairo, Boston, Chicago, Lisbon, Vienna, Oslo, \
         Athens, Dublin, Prague, Moscow, Delhi, Lima, Toronto, Sydney, Munich, Geneva, \
         Dallas, Seoul, Milan, Houston, Zurich",
    ),
    (
        "animal",
        "tiger, lion, horse, spider, whale, shark, eagle, snake, frog, zebra, camel, monkey, \
         wolf, sheep, cow, bee, owl, parrot, turtle, penguin, giraffe, crocodile, donkey, \
         beetle, squirrel",
    ),
    (
        "food",
        "bread, rice, cheese, pasta, soup, chocolate, butter, fish, honey, coffee, milk, \
         sugar, salt, pizza, cake, beans, potatoes, eggs, tea, jam, noodles, yoghurt, \
         carrots, meat, beer",
    ),
    (
        "job",
        "doctor, teacher, pilot, farmer, baker, lawyer, nurse, painter, soldier, singer, \
         dentist, driver, judge, writer, sailor, waiter, dancer, plumber, scientist, king, \
         queen, astronaut, actor, miner",
    ),
    (
        "number",
        "two, three, five, seven, nine, eleven, twelve, twenty, thirty, fifty, sixty, \
         eighty, ninety, a hundred, a thousand, 2, 3, 7, 12, 15, 48, 60, 99, 100, 365, 1000",
    ),
    (
        "topic",
        "gravity, music, history, chemistry, love, electricity, money, football, physics, \
         poetry, democracy, biology, the internet, the moon, time, chess, mathematics, \
         religion, freedom, sleep, war, fire, rain, art, geography, a black hole, happiness, \
         economics",
    ),
    (
        "machine",
        "telephone, computer, bicycle, car, radio, television, camera, engine, printer, \
         clock, fridge, rocket, train, robot, microscope, lift, laptop, battery, \
         washing machine, typewriter, helicopter, piano",
    ),
    (
        "famous",
        "Mozart, Newton, Einstein, Napoleon, Shakespeare, Caesar, Plato, Darwin, Galileo, \
         Columbus, Lincoln, Gandhi, Beethoven, Picasso, Goethe, Dante, Homer, Marie Curie, \
         Cleopatra, Chopin, Kant, Tolstoy",
    ),
    (
        "act",
        "swim, dance, play the guitar, drive a car, read a map, speak German, \
         fly to the moon, bake a cake, write a letter, learn Latin, travel by train, vote, \
         paint a picture, play chess, go to work, sing, climb a mountain, save money, \
         call a doctor, get married, dream, laugh, smoke",
    ),
];

/// What is only asked when a model is evaluated.
const HELD_OUT: &[&str] = &[
    "Which is the highest mountain on earth?",
    "Which planet is closest to the sun?",
    "Who painted the Mona Lisa?",
    "In which year did the Titanic sink?",
    "How long is a marathon?",
    "Will it snow tomorrow?",
    "What happened in the year 1492?",
    "Which river flows through Paris?",
    "How deep is the ocean?",
    "Which metal is the heaviest?",
    "Who won the last election?",
    "At what temperature does water boil?",
    "How many strings has a violin?",
    "Which country has the most islands?",
    "Who discovered penicillin?",
    "What is the square root of 81?",
    "How many bones are in the human body?",
    "What is the speed of light?",
    "Which bird cannot fly?",
    "What causes earthquakes?",
    "Please recommend a good film.",
    "Give me three tips for an interview.",
    "Name five kinds of trees.",
    "How tall is the Eiffel Tower?",
    "What is your favourite season?",
    "Are there people on Mars?",
    "Does your grandmother like opera?",
    "When does the next bus leave?",
    "How do planes stay in the air?",
    "Which sport is played at Wimbledon?",
    "What is the opposite of hot?",
    "How do you spell rhythm?",
    "Who wrote the national anthem?",
    "Is it safe to invest in gold?",
    "Could you fix this bug for me?",
    "Have you ever seen a desert?",
    "What was the name of Alexander's horse?",
    "Which gas do plants breathe in?",
    "Who lives at the North Pole?",
    "What colour was the first flag of Denmark?",
    "How many minutes are in a week?",
    "Summarise the theory of evolution.",
    "Whose face is on the dollar bill?",
    "Explain how a volcano erupts.",
    "What does the word serendipity mean?",
    "Which vitamin is in oranges?",
    "Where do kangaroos come from?",
    "When is the best season to plant tulips?",
    "How heavy is an elephant?",
    "Convert ten miles to kilometres.",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::item::keyed_rng;

    fn trained(count: u64) -> impl Iterator<Item = String> {
        (0..count).map(|at| trained_question(&mut keyed_rng(3, b"test of outside ", at)).question)
    }

    #[test]
    fn every_form_can_be_filled_and_many_questions_differ() {
        for form in FORMS {
            let text = filled(form, &mut keyed_rng(1, b"test of outside ", 0));
            assert!(!text.contains(['<', '>']), "{text}");
        }
        assert!(trained(4000).collect::<BTreeSet<_>>().len() > 1500);
    }

    #[test]
    fn no_held_out_question_begins_as_a_trained_one() {
        let begin = |text: &str| text.split(' ').take(4).collect::<Vec<_>>().join(" ");
        let trained: BTreeSet<String> = trained(20_000).map(|text| begin(&text)).collect();
        let held_out: Vec<_> = (0..).map_while(held_out_question).collect();
        assert_eq!(held_out.len(), OUTSIDE_QUESTIONS);
        for QuestionAnswer { question, answer } in held_out {
            assert!(!trained.contains(&begin(&question)), "{question}");
            assert_eq!(answer, ANSWER);
        }
    }
}
