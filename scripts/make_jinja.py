"""Writes export/text/tests/jinja.json: what Jinja in the sandbox of transformers makes of many expressions.

The environment is the one in which transformers 5 renders chat templates (utils/chat_template_utils.py). Each
line of the file is an expression and its text, or `null` where Jinja reports an error. Needs jinja2.

    python scripts/make_jinja.py
"""

import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

VARIABLES = {
    "none": None,
    "text": "Hello, World",
    "spaced": "  a  b\tc \n",
    "mark": "é ß ŁÓDŹ",
    "lines": "one\ntwo\r\nthree\n",
    "list": [3, 1, 2],
    "words": ["b", "A", "c"],
    "pairs": [["k", 1], ["l", 2]],
    "map": {"b": 1, "a": [1, 2], "C": {"x": None, "y": True}},
    "people": [{"name": "Ann", "age": 3}, {"name": "Bob", "age": 3}, {"name": "Cy", "age": 5}],
    "number": 1234567,
    "float": 0.1,
}

# Left out, since no chat template that we met needs it and ours does not have it: filters for HTML and files
# (urlencode, striptags, forceescape, xmlattr, wordwrap, filesizeformat, random, pprint in lines), cycler, lipsum, conversions
# to `repr` in formats, attributes of Python's classes.
EXPRESSIONS = """
1e16
1e15
1e22
1e-5
0.0001
123456789012345678.0
0.1 + 0.2
1.0
-0.0
3.0 * 2
7 / 2
7 // 2
-7 // 2
-7 % 3
2 ** 10
2 ** -1
2 ** 0.5
10 ** 20
[1.0, 1e16, 1e-7, true, none, 'a"b', "a'b"]
{'a': 1e16, 'b': [none, false]}
('a',)
('a', 1)
()
[]
'a\\nb'
['a\\nb\\t\\\\é\\u200b']
[text, 'it\\'s "q"']
none
[none]
true ~ 1.5 ~ none
1 == 1.0
'a' < 'b'
[1, 2] < [1, 3]
text[0]
text[-1]
text[::-1]
text[2:4]
text[:-3]
list[5]
map['zz'] is defined
map.b
map.zz
not none
'x' * 3
[1] * 3
[1] + [2]
'a' in text
'b' in map
3 in list
3 not in list
text is string
text is sequence
list is sequence
map is sequence
range(3) is sequence
none is sequence
1 is sequence
nothing is sequence
text is iterable
range(3) is iterable
1 is iterable
none is iterable
map is iterable
nothing is iterable
map is mapping
1 is number
true is number
1.5 is float
1 is float
1 is integer
true is integer
true is boolean
nothing is undefined
none is none
4 is divisibleby 2
text is lower
'abc' is lower
'ABC' is upper
text is callable
range is callable
1 is in [1, 2]
none is false
false is false
true is true
text is eq 'a'
3 is gt 2
3 is sameas 3
'upper' is filter
'odd' is test
text is escaped
text|length
none|default('x')
none|default('x', true)
''|default('x', true)
nothing|default('x')
text|replace('o', '0')
text|replace('o', '0', 1)
text|upper
text|capitalize
mark|lower
mark|upper
mark|capitalize
mark|title
'hello wOrld-foo it\\'s'|title
'hello wOrld-foo it\\'s'.title()
text|center(20) ~ '|'
text|center(4)
text|truncate(5)
text|truncate(5, true)
text|truncate(7, true, '..')
'foo bar baz qux'|truncate(9)
'foo bar baz qux'|truncate(9, true)
'foo bar baz qux'|truncate(11)
'foo bar baz qux'|truncate(11, false, '...', 0)
'foo bar baz qux'|wordcount
'a-b c_d'|wordcount
'<a>'|e
'abc'|int
'12'|int
' 12 '|int
'1_000'|int
'12.7'|int
'12.7'|float
'abc'|float
'abc'|float(1.5)
'abc'|int(7)
'0x1f'|int(0, 16)
'0x1f'|int(base=16)
none|int
none|float
12.9|int
-12.9|int
true|int
[1]|int
2.5|round
3.5|round
2.345|round(2)
2.345|round(2, 'floor')
2.341|round(2, 'ceil')
1234|round(-2)
42|round
42.55|round(1)|int
-3|abs
list|sum
people|sum(attribute='age')
people|sum('age', 10)
list|sort
words|sort
words|sort(case_sensitive=true)
words|sort(reverse=true)
people|sort(attribute='age,name', reverse=true)|map(attribute='name')|list
list|min
list|max
words|max
[]|max
list|first
list|last
[]|first
text|first
text|last
list|reverse|list
text|reverse
list|join(', ')
list|join
people|join(', ', attribute='name')
list|unique|list
['a', 'A', 'b']|unique|list
['a', 'A', 'b']|unique(true)|list
people|groupby('age')|map('first')|list
people|groupby('age')|map('last')|map('length')|list
people|map(attribute='name')|join(' ')
people|map(attribute='nope', default='-')|join(' ')
words|map('upper')|list
words|map('replace', 'b', 'x')|list
people|selectattr('age', 'gt', 3)|list
people|rejectattr('age', 'gt', 3)|map(attribute='name')|list
people|selectattr('age')|list|length
list|select('odd')|list
list|reject('odd')|list
list|select|list
[1, 2, 3, 4, 5]|batch(2)|list
[1, 2, 3, 4, 5]|batch(2, 'x')|list
[1, 2, 3, 4, 5]|slice(2)|list
[1, 2, 3, 4, 5]|slice(3, 'x')|list
map|dictsort
map|dictsort(true)
map|dictsort(false, 'key', true)
map|items|list
map|length
map|list
map|first
map
map|string
text|list
text|string
1.0|string
none|string
{1: 2, none: 3, 1.5: 5}|tojson
text|trim
spaced|trim
'xxaxx'|trim('x')
lines|indent
lines|indent(2)
lines|indent(2, true)
'a\\n\\nb'|indent(2)
'a\\n\\nb'|indent(2, false, true)
'a\\n\\nb'|indent('--')
'a\\n\\nb'|indent(width=3, first=true, blank=true)
'%s is %d'|format('x', 3)
'%5.2f|%-5s|%05d|%x|%%'|format(3.14159, 'ab', 42, 255)
'%(a)s'|format(a=3)
'%s' % 1e16
'%s-%s' % ('a', true)
'%s' % [1, 'a']
'%e' % 12345.678
'%g' % 0.00001
'%c' % 'x'
'%+d % d' % (3, 4)
'%o %X' % (8, 255)
people|attr('x') is defined
list|tojson
map|tojson
map|tojson(indent=2)
map|tojson(indent=4, sort_keys=true)
map|tojson(false, 2)
map|tojson(true)
map|tojson(indent=0)
mark|tojson
mark|tojson(ensure_ascii=true)
'😀'|tojson(ensure_ascii=true)
mark|tojson(ensure_ascii=false)
list|tojson(separators=(',', ':'))
map|tojson(separators=(',', ':'))
map|tojson(separators=(', ', ': '), indent=1)
1e16|tojson
[1e-5, 1.0, 0.1, 100000.0, 1e100]|tojson
'a"b\\\\c/\\n\\u007f<>&\\''|tojson
[]|tojson(indent=2)
{}|tojson(indent=2)
[[], {}]|tojson(indent=2)
(1, 2)|tojson
range(3)|list|tojson
text.upper()
text.lower()
text.swapcase()
text.casefold()
mark.casefold()
text.capitalize()
text.center(20) ~ '|'
text.center(20, '*')
text.center(21, '*')
'abc'.center(6, '*')
'abcd'.center(7, '*')
text.ljust(15) ~ '|'
text.ljust(15, '.')
text.rjust(15, '.')
text.rjust(3)
'42'.zfill(5)
'-42'.zfill(5)
'+4'.zfill(4)
text.count('o')
text.count('o', 5)
text.count('o', 5, 8)
text.count('')
text.find('o')
text.find('o', 5)
text.find('o', 5, 6)
text.find('zz')
text.rfind('o')
text.rfind('o', 0, 6)
text.index('o')
text.index('zz')
text.rindex('o')
mark.find('Ó')
text.startswith('He')
text.startswith(('x', 'He'))
text.startswith('l', 2)
text.startswith('l', 2, 3)
text.endswith('d')
text.endswith(('x', 'ld'))
text.endswith('o', 0, 5)
text.replace('o', '0')
text.replace('o', '0', 1)
text.replace('o', '0', count=1)
text.replace('', '-')
text.removeprefix('Hello')
text.removeprefix('x')
text.removesuffix('World')
text.removesuffix('x')
text.partition(', ')
text.partition('zz')
text.rpartition('o')
text.rpartition('zz')
text.split()
text.split(', ')
text.split(sep=', ')
text.split('o', 1)
text.split('o', maxsplit=1)
spaced.split()
spaced.split(none, 1)
spaced.split(maxsplit=1)
spaced.split(none, 0)
spaced.split(' ')
''.split()
''.split(',')
text.split('')
text.rsplit('o', 1)
text.rsplit(maxsplit=1)
spaced.rsplit(none, 1)
spaced.rsplit()
text.rsplit('o')
lines.splitlines()
lines.splitlines(true)
lines.splitlines(keepends=true)
'a\\x0bb\\u2028c\\rd'.splitlines()
spaced.strip()
spaced.lstrip()
spaced.rstrip()
'\\x1ca\\x1f'.strip()
'xxaxx'.strip('x')
'xyaxy'.strip('yx')
'xxaxx'.lstrip('x')
'xxaxx'.rstrip('x')
'xxaxx'.strip(none)
'abc'.isalpha()
'abc1'.isalnum()
'123'.isdigit()
'½'.isdigit()
'½'.isnumeric()
'123'.isdecimal()
'²'.isdigit()
'²'.isdecimal()
' \\t'.isspace()
''.isspace()
'abc'.islower()
'ABC'.isupper()
'Abc Def'.istitle()
'abc def'.istitle()
'abc'.isidentifier()
'1abc'.isidentifier()
'abc'.isascii()
'é'.isascii()
'abc'.isprintable()
'a\\n'.isprintable()
'a\\tb'.expandtabs()
'a\\tb'.expandtabs(4)
'-'.join(['a', 'b'])
', '.join(words)
'-'.join('abc')
'{} {}'.format('a', 1)
'{0} {1} {0}'.format('a', 1)
'{a}'.format(a=3)
'{:>5}|{:<5}|{:^5}'.format('a', 'b', 'c')
'{:.2f} {:05d} {:,} {:x}'.format(3.14159, 42, 1234567, 255)
'{{}} {}'.format(1)
'{0[a]}'.format({'a': 1})
'{} {}'.format(none, true)
map.keys()|list
map.values()|list
map.items()|list
map.get('b')
map.get('zz')
map.get('zz', 5)
map.copy()
map.update({'z': 1})
map.pop('b')
list.append(1)
list.count(3)
list.index(1)
list.index(9)
list.copy()
(1, 2).index(2)
(1, 2).count(2)
list.pop()
map.items()|map('first')|list
dict(a=1, b='x')
dict(map, z=1)
range(5)|list
range(2, 8, 3)|list
range(5, 0, -2)|list
range(3)|length
range(3)[1]
range(10)[2:5]|list
namespace(a=1).a
joiner(', ')() ~ 'x'
'a' if false
'a' if true else 'b'
[1, 2, 3][1:]
[1, 2, 3][::-1]
[1, 2, 3][-2:]
'%d%%' % 50
1 + 1.0
'a' ~ 1
true + 1
true and 'x'
'' or 'x'
none or 0
1 < 2 < 3
not 1 == 2
'abc'|map('upper')|join
text|safe
text|pprint
[1, [2, [3]]]|string
number|string
'{:,}'.format(number)
text.__class__
map.__class__ is defined
"a" "b"
'a' 'b' ~ 'c'
1_000
0x1f
0b11
0o17
[1,2,]
{'a':1,}
(1, 2,)
-2 ** 2
2 ** 3 ** 2
[[1, 2], [3]]|map('sum')|list
[[1, 2], [3]]|sum(start=[])
'a,b'.split(',')|map('upper')|list
text|batch(5)|map('join')|list
people[0]['name']
people[0].name
people[0]['zz']['y']
people[0].get('name')[0]
people|map('length')|list
people|tojson
{'a': {'b': [1, {'c': 2}]}}|tojson(indent=1)
text|default
list|length > 2 and text
loop is defined
true is boolean and 1 is not boolean
'abc' is in 'xabcx'
1 if nothing else 2
nothing
nothing.x
nothing ~ 'x'
nothing + 1
nothing == none
nothing|length
nothing|list
nothing|join
nothing|upper
'a'|nosuch
raise_exception('x')
raise_exception()
strftime_now('%Y') | length
"""

TEMPLATES = [
    "{% set j = joiner() %}{% for i in list %}{{ j() }}{{ i }}{% endfor %}",
    "{% for i in list %}{{ loop.cycle('x', 'y') }}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{% endfor %}",
    "{% for i in list %}{{ loop.changed(i > 1) }}{{ loop.previtem }}{{ loop.nextitem }}{% endfor %}",
    "{% for k, v in map.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k in map %}{{ k }}{% endfor %}",
    "{% for c in text %}{{ c }}.{% endfor %}",
    "{% for c in 'é😀' %}{{ c }}.{% endfor %}",
    "{% for i in [] %}x{% else %}none{% endfor %}",
    "{% for i in list if i > 1 %}{{ i }}{{ loop.index }}{% endfor %}",
    "{% for i in [1, [2, [3]]] recursive %}{% if i is iterable %}({{ loop(i) }}){% else %}{{ i }}{% endif %}{% endfor %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set ns = namespace(x=1, y='a') %}{% for i in list %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}",
    "{% set ns = namespace({'x': 1}) %}{{ ns.x }}",
    "{% set x %}a{{ 1 }}b{% endset %}{{ x }}",
    "{% set x | upper %}a{{ 1 }}b{% endset %}{{ x }}",
    "{% filter upper %}abc{{ 1 }}{% endfilter %}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}",
    "{% macro f(a, b=2, *args, **kwargs) %}{{ a }}{{ b }}{{ args }}{{ kwargs }}{% endmacro %}{{ f(1) }}{{ f(1, 3, 4, z=5) }}",
    "{% macro f(a) %}{{ a }}{{ caller() }}{% endmacro %}{% call f(1) %}x{% endcall %}",
    "{% macro f(a) %}{{ caller(a) }}{% endmacro %}{% call(x) f(1) %}<{{ x }}>{% endcall %}",
    "{% if list %}a{% endif %}{% if [] %}b{% endif %}{% if '' %}c{% endif %}{% if 0.0 %}d{% endif %}",
    "  {%- if true %} a {%- endif %}  b",
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "a\n{# note #}\nb\n\n",
    "a  {%+ if true %}b{% endif %}",
    "{% raw %}{{ x }}{% endraw %}",
    "{{ '{{' }}",
    "{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
    "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% set x = 1 %}{% for i in list %}{% set x = i %}{% endfor %}{{ x }}",
    "{% for p in people|groupby('age') %}{{ p.grouper }}:{{ p.list|length }};{% endfor %}",
    "{% for age, group in people|groupby('age') %}{{ age }}:{{ group|map(attribute='name')|join(',') }};{% endfor %}",
    "{% for a in [1, 2] %}{% for b in [1, 2] %}{{ loop.index }}{{ loop.depth }}{% endfor %}{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% do list.append(1) %}x",
    "{% set _ = map.update({'q': 1}) %}{{ map.q }}",
    "{% block a %}x{{ 1 }}{% endblock %}{{ self.a() }}",
    "{% set messages = people[1:] %}{{ messages[0].name }}",
    "{{ people | map(attribute='name') | list }}",
    "{{ people[0] is mapping and people[0].name is string }}",
    "{%- for m in people -%}\n{{- m.name -}}\n{%- endfor -%}",
    "{% for line in lines.splitlines() %}[{{ line }}]{% endfor %}",
    "{% set parts = text.split(', ') %}{{ parts[0] }}{{ parts[-1] }}{{ parts|length }}",
    "{% if text.startswith('He') and not text.endswith('x') %}y{% endif %}",
    "{{ text }}\n",
    "{{ text }}\n\n",
]


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def strftime_now(form):
    import datetime

    return datetime.datetime.now().strftime(form)


environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
)
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception
environment.globals["strftime_now"] = strftime_now


def rendered(source):
    try:
        return environment.from_string(source).render(**json.loads(json.dumps(VARIABLES)))
    except Exception:  # of whatever kind: the template cannot be used
        return None


sources = ["{{ %s }}" % line for line in EXPRESSIONS.strip().splitlines()] + TEMPLATES
lines = [json.dumps([source, rendered(source)], ensure_ascii=False) for source in sources]
target = pathlib.Path(__file__).parent.parent / "export/text/tests/jinja.json"
variables = json.dumps(VARIABLES, ensure_ascii=False)
target.write_text('{"variables": %s,\n"cases": [\n%s\n]}\n' % (variables, ",\n".join(lines)))
print(f"{len(lines)} cases, jinja2 {jinja2.__version__}")
