"""Chat templates in the styles of well-known models, written for these tests."""

CHATML = """\
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{%- if tools is not none or system %}
    {{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system }}
    {%- for tool in tools or [] %}
        {{- '\\n' ~ tool | tojson(indent=4) }}
    {%- endfor %}
    {{- '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' }}
    {%- if message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception('This model makes one tool call at once') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "%s", "parameters": ' % call.name ~ call.arguments | tojson ~ '}' }}
    {%- elif message.role == 'tool' %}
        {{- message.content if message.content is string else message.content | tojson }}
    {%- else %}
        {{- message.content | trim }}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {{- raise_exception('System role not supported') }}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

MISTRAL = """\
{%- set ns = namespace(turn=0, last='') %}
{%- for message in messages if message.role == 'user' %}
    {%- set ns.last = message.content %}
{%- endfor %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set ns.turn = ns.turn + 1 %}
        {%- if tools and message.content == ns.last %}
            {{- '[AVAILABLE_TOOLS] ' ~ tools | map(attribute='function') | list | tojson }}
            {{- '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + message.content + ' [/INST]' }}
    {%- elif message.role == 'assistant' and message.content is defined %}
        {%- generation %}
        {{- ' ' + message.content + eos_token }}
        {%- endgeneration %}
    {%- elif message.role == 'assistant' %}
        {{- '[TOOL_CALLS] ' ~ message.tool_calls | map(attribute='function') | list | tojson }}
        {{- eos_token }}
    {%- else %}
        {%- continue %}
    {%- endif %}
{%- endfor %}
"""

PARTS = """\
{%- macro text(content) %}
    {%- for part in content %}
        {%- if part.type == 'text' %}{{ part.text }}{% endif %}
    {%- endfor %}
{%- endmacro %}
{%- for message in messages %}
    {{- message.role | capitalize ~ ': ' ~ text(message.content) ~ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}
"""

THINKING = """\
{%- for message in messages %}
    {{- '<|' + message.role + '|>' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}{{ part.text }}{% endfor %}
    {%- endif %}
    {%- if message.reasoning_content is defined and loop.last %}
        {{- '<think>' + message.reasoning_content + '</think>' }}
    {%- endif %}
{%- endfor %}
{%- for document in documents or [] %}{{ '\\n[' ~ loop.index ~ '] ' ~ document.title }}{% endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}
{%- endif %}
"""

STYLES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "parts": PARTS,
    "thinking": THINKING,
}
